package gormsessions

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"gorm.io/gorm"
	"gorm.io/gorm/clause"
)

// Tokens that were rotated away stand in a table of their own, <sessions
// table>_retired_tokens, with the time they were: so sessions that never rotate
// pay nothing for it. One of its rows says that a token was valid, and of which
// session; so its return is told from a guess.

// Rotate gives the session a new Token, which the value then has, the only copy.
// The token before it still works for Config.RotationGrace, counted from this call,
// for the requests that the client had under way. After that the use of any earlier
// token is taken for theft: Authenticate revokes the session and returns [ErrReused]
// (RFC 9700, 4.14.2; OWASP ASVS 7.2.4). A token that was imported is replaced by one
// of the plugin's own format.
//
// Rotate when the person gains rights, and at each use of a refresh token. It extends
// nothing: Authenticate has done that. Send the new token to the client: one that goes
// on with the token before ends its own session after the grace. (Behind package
// sessionhttp call its Web.Rotate or Web.Reauthenticate, which set the cookie too.)
//
// Of several calls at once one wins, and the others get [ErrRotated]. So does a call
// whose value was found by an earlier token, or was loaded before Authenticate gave
// the session another hasher's digest. Check for it before [ErrNoSession], which it
// matches: this client is signed in. A client that never got the winner's answer can
// go on for the grace, and must then sign in again: its new token is stored nowhere,
// and to make one more would let a thief have one.
//
// [ErrNoSession] if the session has ended. Inside a transaction of the caller's
// the new token is good once that commits; after a rollback drop the value.
func (p *Plugin[T]) Rotate(ctx context.Context, session *T) error {
	return p.rotate(ctx, "rotate", session, false)
}

// Reauthenticate notes that the person has proved again who they are, and
// rotates, as OWASP asks (ASVS 7.2.4): AuthenticatedAt is now, and the session
// has a new Token. Call it after the proof, before a dangerous action; IsFresh
// tells whether there was one lately. Who comes with the token before, in its grace,
// has the AuthenticatedAt of before. Errors are those of [Plugin.Rotate].
func (p *Plugin[T]) Reauthenticate(ctx context.Context, session *T) error {
	return p.rotate(ctx, "reauthenticate", session, true)
}

func (p *Plugin[T]) rotate(ctx context.Context, op string, session *T, proved bool) error {
	var held Digest // of the token that the caller's value was found by
	if session != nil {
		held = sessionIn(session).TokenDigest
	}
	return p.rewrite(ctx, op, session, func(c call, row *T, now time.Time) (won bool, err error) {
		base := sessionIn(row)
		if !base.activeAt(now) {
			return false, ErrNoSession
		}
		if len(held) > 0 && !bytes.Equal(held, base.TokenDigest) {
			// Or digested anew by another hasher, which nothing can tell from it.
			return false, ErrRotated
		}
		held = base.TokenDigest
		next, reason, proof := *base, "", base.AuthenticatedAt
		next.Token = c.format.newToken()
		if err := c.digestToken(&next); err != nil {
			return false, err
		}
		set := clause.Set{{Column: column(c.digest), Value: next.TokenDigest}}
		next.UpdatedAt = now
		if proved {
			next.AuthenticatedAt, reason = now, "reauthenticated"
			set = append(set, clause.Assignment{Column: column(c.authenticatedAt), Value: now})
		}
		err = c.transaction(func(c call) error {
			if won, err = c.write(base, next, set, c.notRevoked(), c.notExpired(now), c.digestIn(digests{held})); err != nil || !won {
				return err
			}
			c.send(c.db, c.eventOf(EventRotated, row, now, reason))
			// GORM takes a slice after a parenthesis for a list: not the digest first.
			return c.plain().Exec("INSERT INTO ? (session_id, token_digest, authenticated_at, retired_at) VALUES (?, ?, ?, ?)",
				c.retiredTable(), base.ID, held, proof, now).Error
		})
		return won, err
	})
}

// retiredToken is a row of the retired tokens' table. Its columns have these names
// whatever the NamingStrategy.
type retiredToken struct {
	TokenDigest     Digest    `gorm:"column:token_digest"`
	SessionID       uuid.UUID `gorm:"column:session_id"`
	AuthenticatedAt time.Time `gorm:"column:authenticated_at"`
	RetiredAt       time.Time `gorm:"column:retired_at"`
}

// presented makes a session that was found by the token say so, for Rotate; and
// whoever has it has not taken part in a proof that came after it.
func (r *retiredToken) presented(base *Base) {
	if r != nil {
		base.TokenDigest, base.AuthenticatedAt = r.TokenDigest, r.AuthenticatedAt.UTC()
	}
}

func (b *binding) retiredTable() clause.Table {
	return clause.Table{Name: b.schema.Table + retiredSuffix}
}

const (
	retiredSuffix = "_retired_tokens"
	maxName       = 63 // bytes: PostgreSQL cuts longer ones, MySQL takes one more
)

// retiredTokens finds which of the digests belong to tokens that were rotated away.
func (c call) retiredTokens(list digests) ([]retiredToken, error) {
	sql := "SELECT token_digest, session_id, authenticated_at, retired_at FROM ? WHERE token_digest IN ?"
	if _, locking := c.db.Statement.Clauses["FOR"]; locking {
		sql += " FOR UPDATE"
	}
	var found []retiredToken
	if err := c.plain().Raw(sql, c.retiredTable(), []Digest(list)).Scan(&found).Error; err != nil {
		return nil, fmt.Errorf("look for a replaced token in %s (a table that Migrate makes): %w", c.retiredTable().Name, err)
	}
	return found, nil
}

// plain is for statements on another table: c.db without its model and
// conditions.
func (c call) plain() *gorm.DB {
	tx := c.db.Session(&gorm.Session{NewDB: true, Context: c.db.Statement.Context}).Set(ownRaw, true)
	for _, name := range []string{readReplica, readPrimary, outboxKey} {
		if value, ok := c.db.Get(name); ok {
			tx = tx.Set(name, value)
		}
	}
	return tx
}

// afterRotation answers for a token that no session has now: it may have been
// rotated away. Within its grace the session is still its.
func (p *Plugin[T]) afterRotation(c call, presented digests, scopes []Scope) (*T, *retiredToken, error) {
	found, err := c.retiredTokens(presented)
	if err != nil {
		return nil, nil, err
	}
	found = slices.DeleteFunc(found, func(r retiredToken) bool { return !presented.hold(r.TokenDigest) })
	if len(found) == 0 {
		return nil, nil, ErrNoSession
	}
	token := found[0]
	byID := clause.Eq{Column: at(c.id), Value: token.SessionID}
	if nowOf(c.db).Before(token.RetiredAt.Add(c.grace)) {
		session, err := p.lookup(c, byID, scopes)
		return session, &token, err
	}
	// Whatever the scopes: the token is in two hands.
	session, _, err := p.take(c.db.Where(byID))
	if err == nil {
		err = ErrReused
	}
	return session, nil, err
}

// reused ends a session of which a token was presented that had been rotated away.
func (p *Plugin[T]) reused(c call, session *T) error {
	now, base := nowOf(c.db), sessionIn(session)
	var rows int64
	err := c.retry(func() (err error) {
		rows, err = c.end(clause.Eq{Column: at(c.id), Value: base.ID}, reasonReuse, now)
		return err
	})
	if err != nil {
		return err
	}
	if rows > 0 {
		c.send(c.db, c.eventOf(EventReused, session, now, reasonReuse))
	}
	return ErrReused
}

// createRetired creates the retired tokens' table. Its keys are in the order of
// the sessions, and find both a token and all of a session's.
func (b *binding) createRetired(tx *gorm.DB) error {
	table := b.retiredTable()
	if tx.Migrator().HasTable(table.Name) {
		return nil
	}
	if err := tx.Statement.Context.Err(); err != nil { // HasTable has no errors
		return err
	}
	id, err := b.typeOfID(tx)
	if err != nil {
		return err
	}
	sql := "CREATE TABLE IF NOT EXISTS ? (token_digest ? NOT NULL UNIQUE, session_id ? NOT NULL, authenticated_at ? NOT NULL, retired_at ? NOT NULL, PRIMARY KEY (session_id, token_digest)"
	moment := clause.Expr{SQL: tx.Dialector.DataTypeOf(b.authenticatedAt)}
	vars := []any{table, clause.Expr{SQL: tx.Dialector.DataTypeOf(b.digest)}, clause.Expr{SQL: id}, moment, moment}
	if keysWanted(tx) {
		sql += ", FOREIGN KEY (session_id) REFERENCES ? (?) ON UPDATE CASCADE ON DELETE CASCADE"
		vars = append(vars, clause.Table{Name: b.schema.Table}, column(b.id))
	}
	return tx.Exec(sql+")", vars...).Error
}

// typeOfID is the type of the sessions' ID: a foreign key takes no other, and a
// table that somebody else made may have one of its own.
func (b *binding) typeOfID(tx *gorm.DB) (string, error) {
	var query string
	kind := tx.Dialector.DataTypeOf(b.id)
	table := any(b.schema.Table)
	switch tx.Name() {
	case "postgres":
		query = "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = to_regclass(?) AND attname = ?"
		table = tx.Statement.Quote(clause.Table{Name: b.schema.Table})
	case "mysql":
		query = "SELECT CONCAT(column_type, COALESCE(CONCAT(' CHARACTER SET ', character_set_name, ' COLLATE ', collation_name), '')) " +
			"FROM information_schema.columns WHERE table_schema = DATABASE() AND table_name = ? AND column_name = ?"
	default:
		return kind, nil
	}
	err := tx.Raw(query, table, b.id.DBName).Scan(&kind).Error
	return kind, err
}
