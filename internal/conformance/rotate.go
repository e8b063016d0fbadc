package conformance

import (
	"crypto"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gormsessions/gormsessions"
	"gorm.io/gorm"
	"gorm.io/gorm/schema"
)

// gone asserts that a token is refused, as one that was rotated away long ago.
func (e *env) reused(what string, token gormsessions.Token) {
	e.t.Helper()
	_, err := e.sessions.Authenticate(e.ctx, string(token))
	want(e.t, what, err, gormsessions.ErrReused)
}

func (s suite) rotate(t *testing.T) {
	t.Run("R18_Rotate", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{})
		v := e.sign()
		e.authenticate(v)
		first := v.Token
		before := e.row(v.ID)
		e.clock.Advance(time.Minute)
		must(t, e.sessions.Rotate(e.ctx, v))
		row := e.row(v.ID)
		want(t, "another token", v.Token != first && v.Token != "", true)
		want(t, "digest", string(v.TokenDigest), string(row.TokenDigest))
		wantTime(t, "UpdatedAt", &row.UpdatedAt, e.clock.Now())
		wantTime(t, "ExpiresAt stays", row.ExpiresAt, *before.ExpiresAt)
		wantTime(t, "AuthenticatedAt stays", &row.AuthenticatedAt, before.AuthenticatedAt)
		want(t, "count", e.count(), 1)

		// Both work within the grace, and are the same session.
		for _, token := range []gormsessions.Token{first, v.Token} {
			e.clock.Advance(14 * time.Second)
			for name, find := range map[string]func() (*UserSession, error){
				"Authenticate": func() (*UserSession, error) {
					return e.sessions.Authenticate(e.ctx, string(token), gormsessions.WithOwner, gormsessions.ForUser(&e.user))
				},
				"Lookup": func() (*UserSession, error) { return e.sessions.Lookup(e.ctx, string(token)) },
			} {
				got, err := find()
				must(t, err)
				want(t, name, got.ID, v.ID)
				want(t, "no token", got.Token, "")
			}
			_, err := e.sessions.Lookup(e.ctx, string(token), gormsessions.ForUser(e.user.ID+1))
			want(t, "out of scope", err, gormsessions.ErrNoSession)
		}
		e.clock.Advance(2*time.Second - time.Microsecond)
		_, err := e.sessions.Lookup(e.ctx, string(first))
		must(t, err)
		e.clock.Advance(time.Microsecond)
		_, err = e.sessions.Lookup(e.ctx, string(first))
		want(t, "after the grace", err, gormsessions.ErrReused)
		e.authenticate(v) // Lookup writes nothing
	})

	t.Run("R18_ByATokenInItsGrace", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{})
		v := e.sign()
		must(t, e.db.Model(v).Update("Device", "kept").Error)
		first := v.Token
		must(t, e.sessions.Rotate(e.ctx, v))
		e.clock.Advance(2 * time.Hour)
		must(t, e.sessions.Rotate(e.ctx, v)) // its own token is never too old
		e.clock.Advance(10 * time.Second)
		must(t, e.sessions.Rotate(e.ctx, v))
		// A use by the old token is a use, and keeps the new digest.
		between := v.Token
		must(t, e.sessions.Rotate(e.ctx, v))
		e.clock.Advance(10 * time.Second)
		got, err := e.sessions.Authenticate(e.ctx, string(between))
		must(t, err)
		want(t, "digest stored", string(e.row(v.ID).TokenDigest), string(v.TokenDigest))
		wantTime(t, "LastUsedAt", e.row(v.ID).LastUsedAt, e.clock.Now())
		want(t, "device", got.Device, "kept")
		// It makes no second successor.
		err = e.sessions.Rotate(e.ctx, got)
		want(t, "Rotate by an old token", err, gormsessions.ErrRotated)
		must(t, e.sessions.Extend(e.ctx, got))
		err = e.sessions.Reauthenticate(e.ctx, got)
		want(t, "Reauthenticate by an old token", err, gormsessions.ErrRotated)
		wantErr(t, "as ErrNoSession", err, gormsessions.ErrNoSession)
		wantErr(t, "as GORM's", err, gorm.ErrRecordNotFound)
		e.authenticate(v)
		e.reused("the first", first)
	})

	t.Run("R19_ReuseOfAnyGeneration", func(t *testing.T) {
		for generation := range 4 {
			var events recordedEvents
			e := s.start(t, gormsessions.Config{OnEvent: events.record})
			v, other := e.sign(), e.sign()
			tokens := []gormsessions.Token{v.Token}
			for range 4 {
				must(t, e.sessions.Rotate(e.ctx, v))
				tokens = append(tokens, v.Token)
				e.clock.Advance(time.Minute)
			}
			got, err := e.sessions.Authenticate(e.ctx, string(tokens[generation]), gormsessions.ForUser(e.user.ID+1))
			want(t, "reused", err, gormsessions.ErrReused)
			want(t, "session", got, nil)
			wantErr(t, "as ErrNoSession", err, gormsessions.ErrNoSession)
			row := e.row(v.ID)
			wantTime(t, "RevokedAt", row.RevokedAt, e.clock.Now())
			want(t, "RevokedReason", row.RevokedReason, "reuse")
			e.refused(v.Token) // the newest too
			e.authenticate(other)
			reused := events.of(gormsessions.EventReused)
			want(t, "events", len(reused), 1)
			want(t, "event", reused[0].SessionID, v.ID)
			want(t, "its owner", reused[0].Owner, any(e.user.ID))
			want(t, "revoked", len(events.of(gormsessions.EventRevoked)), 1)
			for _, token := range tokens[:4] {
				e.reused("again", token)
			}
			want(t, "events", len(events.of(gormsessions.EventReused)), 1)
		}
	})

	t.Run("R19_OfASessionThatIsGone", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{})
		v, other := e.sign(), e.sign()
		first := v.Token
		must(t, e.sessions.Rotate(e.ctx, v))
		must(t, e.sessions.Rotate(e.ctx, other))
		e.clock.Advance(time.Minute)
		must(t, e.db.Delete(v).Error)
		e.refused(first)
		e.retired(1) // deleted with their session
		must(t, e.db.Select("Sessions").Delete(&e.user).Error)
		e.retired(0)
	})

	t.Run("Rotate_WithoutForeignKeys", func(t *testing.T) {
		free := s
		free.Variant = together(s.Variant, Variant{"no foreign keys", func(c *gorm.Config) { c.DisableForeignKeyConstraintWhenMigrating = true }})
		e := free.start(t, gormsessions.Config{})
		v, other := e.sign(), e.sign()
		must(t, e.sessions.Rotate(e.ctx, v))
		must(t, e.sessions.Rotate(e.ctx, other))
		must(t, e.db.Delete(v).Error)
		e.retired(1)
		must(t, e.db.Unscoped().Delete(&e.user).Error)
		e.retired(0)
	})

	t.Run("RotateOfWhatHasEnded", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{})
		revoked, expired, deleted := e.sign(), e.sign(), e.sign()
		_, err := e.sessions.Revoke(e.ctx, "x", gormsessions.WithID(revoked.ID))
		must(t, err)
		past := e.clock.Now().Add(-time.Second)
		must(t, e.sessions.SetExpiry(e.ctx, expired, &past))
		must(t, e.db.Delete(deleted).Error)
		for name, v := range map[string]*UserSession{"revoked": revoked, "expired": expired, "deleted": deleted} {
			token := v.Token
			want(t, name, e.sessions.Rotate(e.ctx, v), gormsessions.ErrNoSession)
			want(t, name+" keeps its value", v.Token, token)
		}
		wantErr(t, "unsaved", e.sessions.Rotate(e.ctx, &UserSession{}), gormsessions.ErrInvalidValue)
		wantErr(t, "nil", e.sessions.Rotate(e.ctx, nil), gormsessions.ErrInvalidValue)
		e.retired(0)
	})

	t.Run("Reauthenticate", func(t *testing.T) {
		var events recordedEvents
		e := s.start(t, gormsessions.Config{OnEvent: events.record})
		v := e.sign()
		token := v.Token
		e.clock.Advance(24 * time.Hour)
		must(t, e.sessions.Reauthenticate(e.ctx, v))
		wantTime(t, "AuthenticatedAt", &v.AuthenticatedAt, e.clock.Now())
		row := e.row(v.ID)
		wantTime(t, "AuthenticatedAt stored", &row.AuthenticatedAt, e.clock.Now())
		want(t, "another token", v.Token != token, true)
		e.authenticate(v)
		// Who has the token before has not taken part in the proof.
		old, err := e.sessions.Authenticate(e.ctx, string(token))
		must(t, err)
		wantTime(t, "AuthenticatedAt by the old token", &old.AuthenticatedAt, e.clock.Now().Add(-24*time.Hour))
		must(t, e.sessions.Extend(e.ctx, old))
		wantTime(t, "also when it is extended", &old.AuthenticatedAt, e.clock.Now().Add(-24*time.Hour))
		row = e.row(v.ID)
		wantTime(t, "AuthenticatedAt stored", &row.AuthenticatedAt, e.clock.Now())
		rotated := events.of(gormsessions.EventRotated)
		want(t, "events", len(rotated), 1)
		want(t, "reason", rotated[0].Reason, "reauthenticated")
	})

	t.Run("RotateInATransaction", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{})
		v := e.sign()
		first := *v
		err := e.db.Transaction(func(tx *gorm.DB) error {
			sessions := e.sessions.With(tx)
			must(t, sessions.Rotate(e.ctx, v))
			_, err := sessions.Authenticate(e.ctx, string(v.Token))
			must(t, err)
			_, err = sessions.Authenticate(e.ctx, string(first.Token))
			must(t, err)
			return errRollback
		})
		wantErr(t, "rolled back", err, errRollback)
		e.refused(v.Token)
		e.authenticate(&first)
		e.retired(0)
		// A rotation that fails half-way leaves nothing, also where the caller's
		// transaction goes on.
		must(t, e.db.Exec("ALTER TABLE "+tableOf(t, e.db, &UserSession{})+"_retired_tokens RENAME TO elsewhere").Error)
		must(t, e.db.Transaction(func(tx *gorm.DB) error {
			w := first
			if err := e.sessions.With(tx).Rotate(e.ctx, &w); err == nil || errors.Is(err, gormsessions.ErrNoSession) {
				t.Errorf("got %v, want the database's error", err)
			}
			want(t, "token", w.Token, first.Token)
			return nil
		}))
		e.authenticate(&first)
		_, err = e.sessions.Authenticate(e.ctx, string(v.Token))
		if err == nil || errors.Is(err, gormsessions.ErrNoSession) {
			t.Errorf("an unknown token, without the table: got %v, want the database's error", err)
		}
	})

	t.Run("RotateAndTheKeyring", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{})
		v := e.sign()
		stale := *v
		oldest := v.Token
		must(t, e.sessions.Rotate(e.ctx, v))
		stale2 := *v
		peppered := gormsessions.New[UserSession](gormsessions.Config{Hashers: []gormsessions.Hasher{
			gormsessions.HMAC(crypto.SHA256, []byte("a pepper of thirty-two bytes ...")), gormsessions.Hash(crypto.SHA256)}})
		must(t, s.again(t, e.dialect, e.clock, e.log).Use(peppered))
		got, err := peppered.Authenticate(e.ctx, string(oldest)) // in its grace
		must(t, err)
		want(t, "digest", string(e.row(v.ID).TokenDigest), string(v.TokenDigest))
		want(t, "by an old token", peppered.Rotate(e.ctx, got), gormsessions.ErrRotated)
		want(t, "by a stale value", peppered.Rotate(e.ctx, &stale), gormsessions.ErrRotated)
		_, err = peppered.Authenticate(e.ctx, string(v.Token))
		must(t, err)
		want(t, "by a value from before the pepper", peppered.Rotate(e.ctx, &stale2), gormsessions.ErrRotated)
		got, err = peppered.Authenticate(e.ctx, string(v.Token))
		must(t, err)
		must(t, peppered.Rotate(e.ctx, got))
		want(t, "and after the rotation", peppered.Rotate(e.ctx, &stale2), gormsessions.ErrRotated)
		_, err = peppered.Authenticate(e.ctx, string(got.Token))
		must(t, err)
		e.clock.Advance(time.Minute)
		_, err = peppered.Authenticate(e.ctx, string(oldest))
		want(t, "reused", err, gormsessions.ErrReused)
	})

	t.Run("RotateUnderOtherNames", func(t *testing.T) {
		named := s
		named.Variant = together(s.Variant, Variant{"NoLowerCase", func(c *gorm.Config) { c.NamingStrategy = schema.NamingStrategy{NoLowerCase: true} }})
		e := named.start(t, gormsessions.Config{})
		v := e.sign()
		first := v.Token
		must(t, e.sessions.Rotate(e.ctx, v))
		_, err := e.sessions.Authenticate(e.ctx, string(first))
		must(t, err)
		e.clock.Advance(time.Minute)
		e.reused("the first", first)
	})

	// A transaction that the database ended for a deadlock is tried again: a token
	// that is handed out is stored.
	t.Run("RotateAfterADeadlock", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{MaxPerOwner: 9})
		ended := 0
		must(t, e.db.Callback().Raw().Before("gorm:raw").Register("test:deadlock", func(db *gorm.DB) {
			if strings.HasPrefix(db.Statement.SQL.String(), "INSERT") {
				if ended++; ended%2 == 1 {
					_ = db.AddError(errors.New("deadlock detected (SQLSTATE 40P01)"))
				}
			}
		}))
		v := e.sign()
		old := *v
		must(t, e.sessions.Rotate(e.ctx, v))
		want(t, "tries", ended, 2)
		e.authenticate(v)
		e.retired(1)
		err := e.db.Transaction(func(tx *gorm.DB) error { return e.sessions.With(tx).Rotate(e.ctx, v) })
		wantText(t, "in the caller's transaction", err, "40P01")
		e.authenticate(v)
		e.authenticate(&old)
	})

	// In a hook of the application's, whose *gorm.DB is in the middle of a statement.
	t.Run("WithInAHook", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{})
		v, other := e.sign(), e.sign()
		var revoked int64
		hook := func(db *gorm.DB) {
			if db.Statement.Table != tableOf(t, e.db, &User{}) || db.Error != nil {
				return
			}
			tx := db.Session(&gorm.Session{NewDB: true}) // what GORM gives to hooks
			sessions := e.sessions.With(tx)
			must(t, sessions.Rotate(e.ctx, v))
			n, err := sessions.Revoke(e.ctx, "password changed", gormsessions.ForUser(&e.user), gormsessions.Except(v))
			must(t, err)
			revoked += n
		}
		must(t, e.db.Callback().Update().After("gorm:update").Before("gorm:after_update").Register("test:hook", hook))
		must(t, e.db.Model(&e.user).Update("name", "lovelace").Error)
		want(t, "revoked", revoked, 1)
		e.refused(other.Token)
		e.authenticate(v)
	})

	t.Run("RotateAForeignToken", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{AcceptForeign: true, Prefix: "acme"})
		v := e.sign()
		e.exec("UPDATE {t} SET token_digest = ? WHERE id = ?", gormsessions.Hash(crypto.SHA256).Digest("imported"), v.ID)
		got, err := e.sessions.Authenticate(e.ctx, "imported")
		must(t, err)
		must(t, e.sessions.Rotate(e.ctx, got))
		want(t, "format", strings.HasPrefix(string(got.Token), "acme_"), true)
		e.authenticate(got)
		e.clock.Advance(time.Minute)
		e.reused("the imported one", "imported")
	})

	t.Run("R18_TwoAtOnce", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{})
		for range s.count(20, 1_000) {
			v := e.sign()
			var won, lost atomic.Int32
			tokens := make(chan gormsessions.Token, 4)
			var wg sync.WaitGroup
			for i := range 4 {
				wg.Go(func() {
					copied := *v
					rotate := e.sessions.Rotate
					if i%2 == 0 {
						rotate = e.sessions.Reauthenticate
					}
					switch err := rotate(e.ctx, &copied); {
					case err == nil:
						won.Add(1)
						tokens <- copied.Token
					case err == gormsessions.ErrRotated && copied.Token == v.Token:
						lost.Add(1)
					default:
						t.Errorf("got %v, token changed: %v", err, copied.Token != v.Token)
					}
				})
			}
			wg.Wait()
			want(t, "winners", won.Load(), 1)
			want(t, "losers", lost.Load(), 3)
			_, err := e.sessions.Authenticate(e.ctx, string(<-tokens))
			must(t, err)
			if t.Failed() {
				return
			}
		}
		e.retired(s.count(20, 1_000))
	})

	t.Run("R17_RevokeAgainstRotate", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{})
		for range s.count(20, 1_000) {
			v := e.sign()
			var wg sync.WaitGroup
			copied := *v
			wg.Go(func() {
				if err := e.sessions.Rotate(e.ctx, &copied); err != nil && err != gormsessions.ErrNoSession {
					t.Errorf("Rotate: %v", err)
				}
			})
			wg.Go(func() {
				if n, err := e.sessions.Revoke(e.ctx, "x", gormsessions.WithID(v.ID)); err != nil || n != 1 {
					t.Errorf("Revoke: %d, %v", n, err)
				}
			})
			wg.Wait()
			e.refused(v.Token)
			e.refused(copied.Token)
		}
	})
}

// retired asserts how many retired tokens are stored.
func (e *env) retired(wanted int) {
	e.t.Helper()
	var n int
	must(e.t, e.db.Raw("SELECT COUNT(*) FROM "+e.db.Statement.Quote(tableOf(e.t, e.db, &UserSession{})+"_retired_tokens")).Scan(&n).Error)
	want(e.t, "retired tokens", n, wanted)
}
