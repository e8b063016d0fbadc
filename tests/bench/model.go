package main

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"reflect"
	"time"

	"github.com/google/uuid"
	"github.com/gormsessions/gormsessions"
	"gorm.io/datatypes"
)

// User and UserSession are the models of the README. All contestants that read
// the table give a *UserSession with every column, so that they do the same work.
type User struct {
	ID    uint
	Email string `gorm:"not null;size:255"`
}

// UserSession is one signed-in device of a User.
type UserSession struct {
	gormsessions.Session[User, uint]
	Device string `gorm:"not null;size:255"`
}

const (
	idleTimeout = 7 * 24 * time.Hour
	// touchInterval, beside a last use at the beginning of the run: no session is
	// due for a write while reads are measured.
	touchInterval = 24 * time.Hour
	perOwner      = 10  // sessions of each owner
	newcomers     = 100 // owners who have none, for those that are created
)

// config is the plugin's, for all contestants of ours.
var config = gormsessions.Config{IdleTimeout: idleTimeout, TouchInterval: touchInterval}

// population is the rows of one table. Each follows from its number, so that
// nobody has to keep a million tokens.
type population struct {
	rows int
	seed uint64
	now  time.Time
}

func newPopulation(rows int, seed uint64) population {
	return population{rows: rows, seed: seed, now: time.Now().UTC().Truncate(time.Microsecond)}
}

func (p population) random(i int, purpose byte) [64]byte {
	var key [17]byte
	binary.LittleEndian.PutUint64(key[:], p.seed)
	binary.LittleEndian.PutUint64(key[8:], uint64(i))
	key[16] = purpose
	return sha512.Sum512(key[:])
}

const base62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// token is of the plugin's own format: 43 digits and their CRC-32 as 6 more. So
// Authenticate does all that it does with a token of its own, the checksum
// included; the check before the measurement fails if the format ever changes.
func (p population) token(i int) string {
	digits := make([]byte, 49)
	for j, b := range p.random(i, 't') {
		if j < 43 {
			digits[j] = base62[b%62]
		}
	}
	sum := crc32.ChecksumIEEE(digits[:43])
	for j := len(digits) - 1; j >= 43; j-- {
		digits[j] = base62[sum%62]
		sum /= 62
	}
	return string(digits)
}

func digest(token string) gormsessions.Digest {
	sum := sha256.Sum256([]byte(token))
	return sum[:]
}

func (p population) owners() int { return max(p.rows/perOwner, 1) }

func (p population) owner(i int) uint { return uint(i%p.owners()) + 1 }

// newcomer owns none of the rows.
func (p population) newcomer(i int) uint { return uint(p.owners() + 1 + i%newcomers) }

func email(owner uint) string { return fmt.Sprintf("user%d@example.com", owner) }

// created spreads the rows over the last 30 days.
func (p population) created(i int) time.Time {
	const span = 30 * 24 * time.Hour
	return p.now.Add(-span + span/time.Duration(p.rows)*time.Duration(i)).Truncate(time.Microsecond)
}

// id is a UUIDv7 of the creation.
func (p population) id(i int) (id uuid.UUID) {
	random := p.random(i, 'i')
	copy(id[:], random[:])
	var ms [8]byte
	binary.BigEndian.PutUint64(ms[:], uint64(p.created(i).UnixMilli()))
	copy(id[:6], ms[2:])
	id[6] = id[6]&0x0f | 0x70
	id[8] = id[8]&0x3f | 0x80
	return id
}

// session is row i as a contestant is to return it.
func (p population) session(i int) UserSession {
	created := p.created(i)
	expires, deadline, used := p.now.Add(idleTimeout), created.Add(365*24*time.Hour), p.now
	var s UserSession
	s.ID = p.id(i)
	s.TokenDigest = digest(p.token(i))
	s.Data = datatypes.JSONMap{"theme": "dark", "visits": json.Number(fmt.Sprint(i % 1000))}
	s.ExpiresAt, s.IdleTimeout, s.Deadline, s.LastUsedAt = &expires, idleTimeout, &deadline, &used
	s.AuthenticatedAt, s.CreatedAt, s.UpdatedAt = created, created, used
	s.OwnerID = p.owner(i)
	s.Device = fmt.Sprintf("Firefox %d on Linux", 100+i%50)
	return s
}

// sessionColumns are the columns of the table, in the order of fields.
const sessionColumns = "id, token_digest, data, expires_at, idle_timeout, deadline, last_used_at, authenticated_at, " +
	"revoked_at, revoked_reason, created_at, updated_at, owner_id, device"

// fields are where a row of sessionColumns is scanned to.
func fields(s *UserSession) []any {
	return []any{&s.ID, &s.TokenDigest, &s.Data, &s.ExpiresAt, &s.IdleTimeout, &s.Deadline, &s.LastUsedAt, &s.AuthenticatedAt,
		&s.RevokedAt, &s.RevokedReason, &s.CreatedAt, &s.UpdatedAt, &s.OwnerID, &s.Device}
}

// values are what is stored in sessionColumns.
func values(s *UserSession) []any {
	return []any{s.ID, []byte(s.TokenDigest), s.Data, s.ExpiresAt, int64(s.IdleTimeout), s.Deadline, s.LastUsedAt, s.AuthenticatedAt,
		s.RevokedAt, s.RevokedReason, s.CreatedAt, s.UpdatedAt, s.OwnerID, s.Device}
}

// same reports how a session differs from the row that was asked for. The zone of
// a time is the driver's choice.
func same(got, want *UserSession) error {
	if got == nil {
		return fmt.Errorf("no session, want %s", want.ID)
	}
	a, b := *got, *want
	for _, s := range []*UserSession{&a, &b} {
		s.Token = ""
		for _, t := range []**time.Time{&s.ExpiresAt, &s.Deadline, &s.LastUsedAt, &s.RevokedAt} {
			if *t != nil {
				utc := (*t).UTC()
				*t = &utc
			}
		}
		for _, t := range []*time.Time{&s.AuthenticatedAt, &s.CreatedAt, &s.UpdatedAt} {
			*t = t.UTC()
		}
	}
	if !reflect.DeepEqual(a, b) {
		return fmt.Errorf("got %+v, want %+v", a, b)
	}
	return nil
}
