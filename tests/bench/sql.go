package main

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/base64"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/gormsessions/gormsessions"
	"github.com/jackc/pgx/v5"
	"gorm.io/datatypes"
)

// The statements of the contestants who write SQL. They ask what the plugin asks.
const (
	active    = "s.revoked_at IS NULL AND (s.expires_at IS NULL OR s.expires_at > ?)"
	lookupSQL = "SELECT " + sessionColumns + " FROM user_sessions s WHERE s.token_digest = ? AND " + active + " LIMIT 1"
	listSQL   = "SELECT " + sessionColumns + " FROM user_sessions s WHERE s.owner_id = ? AND " + active + " ORDER BY s.created_at DESC, s.id DESC"
	insertSQL = "INSERT INTO user_sessions (" + sessionColumns + ") VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)

// joinSQL is lookupSQL with the owner's row.
var joinSQL = "SELECT s." + strings.ReplaceAll(sessionColumns, ", ", ", s.") + ", o.id, o.email" +
	" FROM user_sessions s INNER JOIN users o ON o.id = s.owner_id WHERE s.token_digest = ? AND " + active + " LIMIT 1"

// sqlText puts a statement into the database's dialect.
func (s *store) sqlText(text string) string {
	if s.kind != "postgres" {
		return text
	}
	parts := strings.Split(text, "?")
	var b strings.Builder
	for i, part := range parts[:len(parts)-1] {
		b.WriteString(part + "$" + strconv.Itoa(i+1))
	}
	return b.String() + parts[len(parts)-1]
}

// prepare is for the contestants who prepare their statement once.
func (s *store) prepare(ctx context.Context, text string) (*sql.Stmt, error) {
	stmt, err := s.pool.PrepareContext(ctx, s.sqlText(text))
	if err == nil {
		s.later(stmt.Close)
	}
	return stmt, err
}

// rawLookup is the baseline: database/sql, a statement prepared once, scanned into
// the same struct as everybody's.
func (s *store) rawLookup(ctx context.Context) (contestant, error) {
	stmt, err := s.prepare(ctx, lookupSQL)
	return contestant{name: "database/sql, prepared", check: isRow, run: func(ctx context.Context, in input) (any, error) {
		session := new(UserSession)
		err := stmt.QueryRowContext(ctx, []byte(digest(in.token)), time.Now().UTC()).Scan(fields(session)...)
		if err != nil {
			return nil, err
		}
		return session, nil
	}}, err
}

func (s *store) rawJoin(ctx context.Context) (contestant, error) {
	stmt, err := s.prepare(ctx, joinSQL)
	return contestant{name: "database/sql, prepared join", check: isRowWithOwner, run: func(ctx context.Context, in input) (any, error) {
		session := new(UserSession)
		session.Owner = new(User)
		err := stmt.QueryRowContext(ctx, []byte(digest(in.token)), time.Now().UTC()).
			Scan(append(fields(session), &session.Owner.ID, &session.Owner.Email)...)
		if err != nil {
			return nil, err
		}
		return session, nil
	}}, err
}

func (s *store) rawList(ctx context.Context) (contestant, error) {
	stmt, err := s.prepare(ctx, listSQL)
	return contestant{name: "database/sql, prepared", check: isListOfOwner, run: func(ctx context.Context, in input) (any, error) {
		rows, err := stmt.QueryContext(ctx, in.rows.owner(in.i), time.Now().UTC())
		if err != nil {
			return nil, err
		}
		defer func() { _ = rows.Close() }()
		list := make([]UserSession, 0, 8) // as the plugin's
		for rows.Next() {
			list = append(list, UserSession{})
			if err := rows.Scan(fields(&list[len(list)-1])...); err != nil {
				return nil, err
			}
		}
		return list, rows.Err()
	}}, err
}

// newSession is what somebody without the plugin makes: a random token, and the
// times that the plugin sets.
func newSession(in input) *UserSession {
	var random [32]byte
	_, _ = rand.Read(random[:])
	token := base64.RawURLEncoding.EncodeToString(random[:])
	now := time.Now().UTC().Truncate(time.Microsecond)
	expires := now.Add(idleTimeout)
	s := signIn(in)
	s.Token, s.TokenDigest = gormsessions.Token(token), digest(token)
	s.ID = uuid.Must(uuid.NewV7())
	s.Data = datatypes.JSONMap{}
	s.ExpiresAt, s.IdleTimeout = &expires, idleTimeout
	s.AuthenticatedAt, s.CreatedAt, s.UpdatedAt = now, now, now
	return s
}

// signIn is what an application gives for a session to create. (Each is asked for
// at another row, so that no two are the same.)
func signIn(in input) *UserSession {
	s := &UserSession{Device: "Safari on iOS"}
	s.OwnerID = in.rows.newcomer(in.i)
	return s
}

func (s *store) rawCreate(ctx context.Context) (contestant, error) {
	stmt, err := s.prepare(ctx, insertSQL)
	return contestant{name: "database/sql, prepared", check: s.isStored, run: func(ctx context.Context, in input) (any, error) {
		session := newSession(in)
		if _, err := stmt.ExecContext(ctx, values(session)...); err != nil {
			return nil, err
		}
		return session, nil
	}}, err
}

// isStored looks for a session that was created, by the digest of its token.
func (s *store) isStored(answer any, in input) error {
	made, ok := answer.(*UserSession)
	if !ok {
		return errNotFound
	}
	var got UserSession
	err := s.pool.QueryRow(s.sqlText(lookupSQL), []byte(digest(string(made.Token))), time.Now().UTC()).Scan(fields(&got)...)
	if err != nil {
		return err
	}
	want := *made
	want.Data, want.Owner = got.Data, nil // nil is stored as {}
	if got.OwnerID != in.rows.newcomer(in.i) || got.IdleTimeout != idleTimeout || len(got.Data) != 0 || !got.ExpiresAt.Equal(got.CreatedAt.Add(idleTimeout)) {
		return errors.New("another session was stored than the one that was asked for")
	}
	return same(&got, &want)
}

// pgxLookup is PostgreSQL's driver without database/sql; it keeps its statements
// prepared by itself.
func (s *store) pgxLookup() contestant {
	text := s.sqlText(lookupSQL)
	return contestant{name: "pgx pool", check: isRow, run: func(ctx context.Context, in input) (any, error) {
		session := new(UserSession)
		err := s.native.QueryRow(ctx, text, []byte(digest(in.token)), time.Now().UTC()).Scan(fields(session)...)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil, errNotFound
		}
		return session, err
	}}
}
