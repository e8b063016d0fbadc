package conformance

import (
	"database/sql"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gormsessions/gormsessions"
	"gorm.io/gorm"
	"gorm.io/gorm/clause"
)

const day = 24 * time.Hour

func (s suite) life(t *testing.T) {
	t.Run("Defaults", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{})
		session := e.sign()
		now := e.clock.Now()
		for _, got := range []*UserSession{session, e.row(session.ID)} {
			wantTime(t, "ExpiresAt", got.ExpiresAt, now.Add(7*day))
			want(t, "IdleTimeout", got.IdleTimeout, 7*day)
			wantTime(t, "CreatedAt", &got.CreatedAt, now)
			wantTime(t, "UpdatedAt", &got.UpdatedAt, now)
			wantTime(t, "AuthenticatedAt", &got.AuthenticatedAt, now)
			want(t, "Deadline", got.Deadline, nil)
			want(t, "LastUsedAt", got.LastUsedAt, nil)
			want(t, "RevokedAt", got.RevokedAt, nil)
			want(t, "version", got.ID.Version(), 7)
			want(t, "zone", got.CreatedAt.Location(), time.UTC)
		}
		want(t, "stored token", e.row(session.ID).Token, "")
	})

	t.Run("R13_ExpiryToTheMicrosecond", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{TouchInterval: gormsessions.Never})
		expiry := e.clock.Now().Add(time.Hour)
		session := e.sign(func(u *UserSession) { u.ExpiresAt = &expiry })
		for _, at := range []struct {
			offset time.Duration
			active bool
		}{{-time.Hour, true}, {-time.Microsecond, true}, {-time.Nanosecond, true}, {0, false}, {time.Nanosecond, false}, {time.Microsecond, false}, {time.Hour, false}} {
			e.clock.Set(expiry.Add(at.offset))
			_, err := e.sessions.Authenticate(e.ctx, string(session.Token))
			want(t, fmt.Sprint("Authenticate at ", at.offset), err == nil, at.active)
			want(t, fmt.Sprint("Active at ", at.offset), e.count(gormsessions.Active) == 1, at.active)
			want(t, fmt.Sprint("Expired at ", at.offset), e.count(gormsessions.Expired) == 0, at.active)
			want(t, fmt.Sprint("Ended at ", at.offset), e.count(gormsessions.Ended) == 0, at.active)
		}
	})

	t.Run("R14_NothingPassesTheDeadline", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{IdleTimeout: 2 * time.Hour, AbsoluteTimeout: 8 * time.Hour, TouchInterval: time.Minute})
		deadline := e.clock.Now().Add(8 * time.Hour)
		session := e.sign()
		for range 60 {
			switch rand.IntN(4) {
			case 0:
				must(t, e.sessions.Extend(e.ctx, session))
			case 1:
				must(t, e.sessions.SetExpiry(e.ctx, session, ptr(e.clock.Now().Add(time.Duration(1+rand.IntN(2000))*time.Minute))))
			case 2:
				must(t, e.sessions.SetExpiry(e.ctx, session, nil))
			default:
				session.IdleTimeout = 1000 * time.Hour // a value of the application's changes nothing
				e.authenticate(session)
			}
			row := e.row(session.ID)
			if row.ExpiresAt == nil || row.ExpiresAt.After(deadline) {
				t.Fatalf("the expiry %v is past the deadline %v", row.ExpiresAt, deadline)
			}
			wantTime(t, "Deadline", row.Deadline, deadline)
			if next := e.clock.Now().Add(7 * time.Minute); next.Before(*row.ExpiresAt) {
				e.clock.Set(next)
			}
		}
		e.clock.Set(deadline)
		e.refused(session.Token)

		created := e.sign(func(u *UserSession) {
			u.Deadline, u.ExpiresAt = ptr(deadline.Add(time.Hour)), ptr(deadline.Add(2*time.Hour))
		})
		wantTime(t, "an expiry past its deadline at creation", e.row(created.ID).ExpiresAt, deadline.Add(time.Hour))
		never := e.sign(func(u *UserSession) { u.IdleTimeout = gormsessions.Never })
		wantTime(t, "no idle timeout", e.row(never.ID).ExpiresAt, deadline.Add(8*time.Hour))
	})

	t.Run("R15_AFixedExpiryStays", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{})
		short := e.clock.Now().Add(10 * time.Minute)
		fixed := e.sign(func(u *UserSession) { u.ExpiresAt = &short })
		set := e.sign()
		must(t, e.sessions.SetExpiry(e.ctx, set, &short))
		for range 9 {
			e.clock.Advance(time.Minute)
			for _, session := range []*UserSession{fixed, set} {
				wantTime(t, "returned", e.authenticate(session).ExpiresAt, short)
				must(t, e.sessions.Extend(e.ctx, session))
				wantTime(t, "stored", e.row(session.ID).ExpiresAt, short)
			}
		}
		e.clock.Set(short)
		e.refused(fixed.Token)
		e.refused(set.Token)
		// Control: a sliding one is lengthened by the same reads.
		slides := e.sign(func(u *UserSession) { u.ExpiresAt, u.IdleTimeout = ptr(e.clock.Now().Add(time.Minute)), time.Hour })
		wantTime(t, "sliding", e.authenticate(slides).ExpiresAt, e.clock.Now().Add(time.Hour))
	})

	t.Run("Slide", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{})
		session := e.sign()
		start := e.clock.Now()
		writes := func(at time.Duration) int {
			t.Helper()
			e.clock.Set(start.Add(at))
			n := -1
			for range 5 {
				statements := e.log.since(func() { e.authenticate(session) })
				n += len(statements) - 1
			}
			return n + 1
		}
		want(t, "writes at first use", writes(time.Minute), 1)
		row := e.row(session.ID)
		wantTime(t, "LastUsedAt", row.LastUsedAt, start.Add(time.Minute))
		wantTime(t, "ExpiresAt", row.ExpiresAt, start.Add(7*day+time.Minute))
		wantTime(t, "UpdatedAt", &row.UpdatedAt, start.Add(time.Minute))
		want(t, "writes within the interval", writes(time.Hour), 0)
		want(t, "writes after it", writes(time.Hour+time.Minute), 1)
		got := e.authenticate(session)
		wantTime(t, "returned as stored", got.ExpiresAt, *e.row(session.ID).ExpiresAt)

		// Half of its own idle timeout, where that is less.
		start = e.clock.Now()
		session = e.sign(func(u *UserSession) { u.IdleTimeout = 10 * time.Minute })
		want(t, "first use", writes(0), 1)
		want(t, "before half", writes(5*time.Minute-time.Microsecond), 0)
		want(t, "at half", writes(5*time.Minute), 1)
		e.clock.Advance(10 * time.Minute)
		e.refused(session.Token)
	})

	t.Run("ReadsThatNeverWrite", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{TouchInterval: gormsessions.Never})
		session := e.sign()
		e.clock.Advance(day)
		statements := e.log.since(func() { e.authenticate(session) })
		want(t, "statements with TouchInterval Never", len(statements), 1)
		must(t, e.sessions.Extend(e.ctx, session))
		wantTime(t, "Extend extends", e.row(session.ID).ExpiresAt, e.clock.Now().Add(7*day))

		e = s.start(t, gormsessions.Config{})
		session = e.sign()
		e.clock.Advance(day)
		for range 3 {
			statements := e.log.since(func() {
				got, err := e.sessions.Lookup(e.ctx, string(session.Token), gormsessions.WithOwner)
				must(t, err)
				want(t, "owner", got.Owner.Name, "ada")
			})
			want(t, "statements of Lookup", len(statements), 1)
		}
		want(t, "LastUsedAt after Lookup", e.row(session.ID).LastUsedAt, nil)
	})

	t.Run("Never", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{IdleTimeout: gormsessions.Never})
		session := e.sign()
		want(t, "ExpiresAt", session.ExpiresAt, nil)
		e.clock.Advance(100 * 365 * day)
		wantTime(t, "LastUsedAt", e.authenticate(session).LastUsedAt, e.clock.Now())
		must(t, e.sessions.Extend(e.ctx, session))
		want(t, "ExpiresAt after use", e.row(session.ID).ExpiresAt, nil)
		want(t, "IdleTimeout", e.row(session.ID).IdleTimeout, gormsessions.Never)
		want(t, "IsExpired", session.IsExpired(), false)
	})

	t.Run("R16_OnlySetExpiryRevalidates", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{})
		session := e.sign()
		e.clock.Advance(8 * day)
		e.refused(session.Token)
		wantErr(t, "Extend", e.sessions.Extend(e.ctx, session), gormsessions.ErrNoSession)
		e.refused(session.Token)
		must(t, e.sessions.SetExpiry(e.ctx, session, ptr(e.clock.Now().Add(day))))
		e.authenticate(session)

		n, err := e.sessions.Revoke(e.ctx, "signed out", gormsessions.WithID(session.ID))
		must(t, err)
		want(t, "revoked", n, 1)
		e.refused(session.Token)
		wantErr(t, "Extend", e.sessions.Extend(e.ctx, session), gormsessions.ErrNoSession)
		for _, expiry := range []*time.Time{nil, ptr(e.clock.Now().Add(day))} {
			wantErr(t, "SetExpiry", e.sessions.SetExpiry(e.ctx, session, expiry), gormsessions.ErrNoSession)
		}
		e.refused(session.Token)
		e.exec("DELETE FROM {t}")
		wantErr(t, "Extend of a deleted one", e.sessions.Extend(e.ctx, session), gormsessions.ErrNoSession)
		wantErr(t, "SetExpiry of a deleted one", e.sessions.SetExpiry(e.ctx, session, nil), gormsessions.ErrNoSession)
	})

	t.Run("R16_NoDoorOfGORMRevives", func(t *testing.T) {
		for name, door := range revivals() {
			t.Run(name, func(t *testing.T) {
				e := s.start(t, gormsessions.Config{})
				stale := e.sign()
				other := e.newUser("eve")
				before := e.row(stale.ID)
				_, err := e.sessions.Revoke(e.ctx, "signed out", gormsessions.ForUser(&e.user))
				must(t, err)
				_ = door(e, stale, &other) // whether it errs or not
				e.refused(stale.Token)
				after := e.row(stale.ID)
				want(t, "revoked", after.IsRevoked(), true)
				want(t, "owner", after.OwnerID, before.OwnerID)
				want(t, "digest", string(after.TokenDigest), string(before.TokenDigest))
				want(t, "sessions", e.count(), 1)

				e.exec("DELETE FROM {t}")
				stale.Data = nil
				_ = door(e, stale, &other)
				want(t, "a deleted session came back", e.count(gormsessions.WithID(stale.ID)), 0)
				_, err = e.sessions.Authenticate(e.ctx, string(stale.Token))
				wantErr(t, "deleted", err, gormsessions.ErrNoSession)
			})
		}
		// Control: where the guard is not, the same looks find the revival.
		e := s.start(t, gormsessions.Config{})
		session := e.sign()
		_, err := e.sessions.Revoke(e.ctx, "signed out", gormsessions.ForUser(&e.user))
		must(t, err)
		e.exec("UPDATE {t} SET revoked_at = NULL")
		e.authenticate(session)
	})

	t.Run("SetExpiry", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{})
		session := e.sign()
		past := e.clock.Now().Add(-time.Minute)
		must(t, e.sessions.SetExpiry(e.ctx, session, &past))
		wantTime(t, "value", session.ExpiresAt, past)
		e.refused(session.Token)
		must(t, e.sessions.SetExpiry(e.ctx, session, nil))
		must(t, e.sessions.SetExpiry(e.ctx, session, nil)) // twice is as once
		want(t, "never", e.row(session.ID).ExpiresAt, nil)
		e.clock.Advance(1000 * day)
		e.authenticate(session)
		wantErr(t, "year 10000", e.sessions.SetExpiry(e.ctx, session, ptr(time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC))), gormsessions.ErrInvalidValue)
		wantErr(t, "nil", e.sessions.SetExpiry(e.ctx, nil, nil), gormsessions.ErrInvalidValue)
		wantErr(t, "unsaved", e.sessions.Extend(e.ctx, &UserSession{}), gormsessions.ErrInvalidValue)
		must(t, e.sessions.Extend(e.ctx, session))
		must(t, e.sessions.Extend(e.ctx, session)) // at the same moment
	})

	t.Run("R21_Revoke", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{})
		first, second := e.sign(), e.sign()
		eve := e.newUser("eve")
		theirs := &UserSession{}
		theirs.OwnerID = eve.ID
		must(t, e.db.Create(theirs).Error)
		for name, scopes := range map[string][]gormsessions.Scope{
			"no scope":           nil,
			"zero owner":         {gormsessions.ForUser(&User{})},
			"nil owner":          {gormsessions.ForUser(nil)},
			"nil except":         {gormsessions.Except(nil)},
			"unsaved except":     {gormsessions.Except(&UserSession{})},
			"empty list":         {func(db *gorm.DB) *gorm.DB { return db.Where("id IN ?", []string{}) }},
			"empty fields":       {gormsessions.Where(gormsessions.Fields{})},
			"empty field list":   {gormsessions.Where(gormsessions.Fields{"Device": []string{}})},
			"unknown field":      {gormsessions.Where(gormsessions.Fields{"nope": 1})},
			"does nothing":       {func(db *gorm.DB) *gorm.DB { return db }},
			"empty struct":       {func(db *gorm.DB) *gorm.DB { return db.Where(&UserSession{}) }},
			"malformed token":    {gormsessions.WithToken("nope")},
			"limit":              {gormsessions.Active, func(db *gorm.DB) *gorm.DB { return db.Limit(1) }},
			"join":               {gormsessions.Active, gormsessions.WithOwner},
			"nested no scope":    {func(db *gorm.DB) *gorm.DB { return db.Scopes(func(db *gorm.DB) *gorm.DB { return db }) }},
			"widened by or":      {gormsessions.ForUser(&User{}), func(db *gorm.DB) *gorm.DB { return db.Or("1 = 1") }},
			"unscoped, no scope": {func(db *gorm.DB) *gorm.DB { return db.Unscoped() }},
		} {
			n, err := e.sessions.Revoke(e.ctx, name, scopes...)
			if n != 0 || e.count(gormsessions.Revoked) != 0 {
				t.Errorf("%s: revoked %d (%v)", name, n, err)
			}
		}
		_, err := e.sessions.Revoke(e.ctx, "x")
		wantErr(t, "no scope", err, gormsessions.ErrNoScope)

		n, err := e.sessions.Revoke(e.ctx, "signed out elsewhere", gormsessions.ForUser(e.user), gormsessions.Except(first))
		must(t, err)
		want(t, "all but one", n, 1)
		e.refused(second.Token)
		e.authenticate(first)
		e.authenticate(theirs)
		at := e.clock.Now()
		e.clock.Advance(time.Minute)
		n, err = e.sessions.Revoke(e.ctx, "again", gormsessions.WithID(second.ID))
		must(t, err)
		want(t, "twice", n, 0)
		row := e.row(second.ID)
		want(t, "reason", row.RevokedReason, "signed out elsewhere")
		wantTime(t, "RevokedAt", row.RevokedAt, at)

		nested := func(db *gorm.DB) *gorm.DB { return db.Scopes(gormsessions.ForUser(&eve)) }
		n, err = e.sessions.Revoke(e.ctx, "nested", nested)
		must(t, err)
		want(t, "a nested scope", n, 1)
		e.authenticate(first)
		either := func(db *gorm.DB) *gorm.DB { return db.Where("device = ?", "none").Or("device = ?", "Firefox") }
		n, err = e.sessions.Revoke(e.ctx, "or", either, gormsessions.ForUser(&eve))
		must(t, err)
		want(t, "an Or stays within the other scopes", n, 0)
		_, err = e.sessions.Revoke(e.ctx, "\x00", gormsessions.Active)
		wantErr(t, "NUL reason", err, gormsessions.ErrInvalidValue)
	})

	t.Run("GetListCount", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{})
		var made []*UserSession
		for i := range 5 {
			e.clock.Advance(time.Minute)
			made = append(made, e.sign(func(u *UserSession) { u.Device = fmt.Sprint(i % 2) }))
		}
		list, err := e.sessions.List(e.ctx, gormsessions.ForUser(&e.user))
		must(t, err)
		want(t, "List", len(list), 5)
		for i := range list {
			want(t, "newest first", list[i].ID, made[4-i].ID)
		}
		list, err = e.sessions.List(e.ctx, func(db *gorm.DB) *gorm.DB { return db.Order("created_at") }, gormsessions.Where(gormsessions.Fields{"Device": "1"}))
		must(t, err)
		want(t, "List in the caller's order", len(list) == 2 && list[0].ID == made[1].ID, true)
		got, err := e.sessions.Get(e.ctx, gormsessions.ForUser(e.user.ID), gormsessions.WithOwner)
		must(t, err)
		want(t, "Get is the newest", got.ID, made[4].ID)
		want(t, "Owner", got.Owner.Name, "ada")
		want(t, "Count", e.count(gormsessions.WithOwner, gormsessions.Active), 5)
		_, err = e.sessions.Get(e.ctx, gormsessions.Expired)
		want(t, "Get of none", err, gormsessions.ErrNoSession)
		wantErr(t, "as GORM's", err, gorm.ErrRecordNotFound)
		list, err = e.sessions.List(e.ctx, gormsessions.Expired)
		must(t, err)
		want(t, "List of none", len(list), 0)
	})

	t.Run("WithTransaction", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{})
		var inside UserSession
		err := e.db.Transaction(func(tx *gorm.DB) error {
			sessions := e.sessions.With(tx)
			inside.OwnerID = e.user.ID
			must(t, sessions.Create(e.ctx, &inside))
			_, err := sessions.Authenticate(e.ctx, string(inside.Token), gormsessions.WithOwner)
			must(t, err)
			n, err := sessions.Revoke(e.ctx, "x", gormsessions.ForUser(&e.user), gormsessions.Except(&inside))
			must(t, err)
			want(t, "revoked", n, 0)
			return errRollback
		})
		wantErr(t, "rolled back", err, errRollback)
		e.refused(inside.Token)
		want(t, "count", e.count(), 0)
		other := s.again(t, e.dialect, e.clock, e.log)
		_, err = e.sessions.With(other).Get(e.ctx)
		wantErr(t, "With another *gorm.DB", err, gormsessions.ErrNotRegistered)
		_, err = gormsessions.New[UserSession](gormsessions.Config{}).Authenticate(e.ctx, string(inside.Token))
		wantErr(t, "not registered", err, gormsessions.ErrNotRegistered)
	})

	t.Run("WithConditions", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{})
		eve := e.newUser("eve")
		mine := e.sign(func(u *UserSession) { u.Device = "x" })
		past := e.clock.Now().Add(-time.Hour)
		theirs := e.sign(func(u *UserSession) { u.OwnerID, u.Device, u.ExpiresAt, u.IdleTimeout = eve.ID, "y", &past, day })
		either := e.db.Where("device = ?", "y").Or("device = ?", "x")
		for _, p := range []*gormsessions.Plugin[UserSession]{
			e.sessions.With(either), e.sessions.With(e.db.Scopes(func(db *gorm.DB) *gorm.DB { return db.Or("1 = 1") })),
		} {
			e.clock.Advance(2 * time.Hour)
			_, _ = p.Authenticate(e.ctx, string(mine.Token))
			_ = p.Extend(e.ctx, mine)
			e.refused(theirs.Token)
			n, err := p.Revoke(e.ctx, "x", gormsessions.ForUser(&e.user))
			if n > 1 {
				t.Errorf("%d revoked, %v", n, err)
			}
			want(t, "theirs", e.row(theirs.ID).IsRevoked(), false)
			wantTime(t, "theirs", e.row(theirs.ID).ExpiresAt, past)
		}
	})

	t.Run("RevokeByAScopeThatAsks", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{})
		v := e.sign()
		byName := func(db *gorm.DB) *gorm.DB {
			var ids []uint
			must(t, db.Session(&gorm.Session{NewDB: true}).Model(&User{}).Where("name = ?", "ada").Pluck("id", &ids).Error)
			return db.Where("owner_id IN ?", ids)
		}
		elsewhere := func(db *gorm.DB) *gorm.DB { return db.Table("archive") }
		_, err := e.sessions.Revoke(e.ctx, "x", elsewhere, gormsessions.ForUser(&e.user))
		wantErr(t, "another table", err, gormsessions.ErrInvalidValue)
		e.authenticate(v)
		n, err := e.sessions.Revoke(e.ctx, "x", byName)
		must(t, err)
		want(t, "revoked", n, 1)
	})

	t.Run("R30_OneConnection", func(t *testing.T) {
		one := s
		one.Conns = 1
		e := one.start(t, gormsessions.Config{})
		session := e.sign()
		must(t, e.db.Transaction(func(tx *gorm.DB) error {
			sessions := e.sessions.With(tx)
			e.clock.Advance(2 * time.Hour)
			_, err := sessions.Authenticate(e.ctx, string(session.Token), gormsessions.WithOwner)
			must(t, err)
			must(t, sessions.Extend(e.ctx, session))
			must(t, sessions.SetExpiry(e.ctx, session, nil))
			must(t, sessions.Create(e.ctx, &UserSession{Session: gormsessions.Session[User, uint]{OwnerID: e.user.ID}}))
			_, err = sessions.Revoke(e.ctx, "x", gormsessions.WithID(session.ID))
			must(t, err)
			must(t, sessions.Migrate(e.ctx))
			must(t, tx.Where("id = ?", e.user.ID).Delete(&User{}).Error)
			return nil
		}))
		must(t, e.sessions.Migrate(e.ctx))
	})
}

// Wrapped is not registered, but stands for the same table.
type Wrapped struct{ UserSession }

var errRollback = fmt.Errorf("rolled back by the test")

// revivals are the doors of GORM that write a stale value.
func revivals() map[string]func(*env, *UserSession, *User) error {
	return map[string]func(*env, *UserSession, *User) error{
		"Save":       func(e *env, s *UserSession, _ *User) error { return e.db.Save(s).Error },
		"Save slice": func(e *env, s *UserSession, _ *User) error { return e.db.Save([]*UserSession{s}).Error },
		"Save another's": func(e *env, s *UserSession, other *User) error {
			s.OwnerID = other.ID
			s.Device = "changed"
			return e.db.Save(s).Error
		},
		"Updates":          func(e *env, s *UserSession, _ *User) error { return e.db.Updates(s).Error },
		"Updates Select *": func(e *env, s *UserSession, _ *User) error { return e.db.Select("*").Updates(s).Error },
		"Updates map": func(e *env, s *UserSession, _ *User) error {
			return e.db.Model(s).Updates(map[string]any{"revoked_at": nil, "RevokedReason": "", "expires_at": nil}).Error
		},
		"UpdateColumn": func(e *env, s *UserSession, _ *User) error {
			return e.db.Model(s).UpdateColumn("revoked_at", nil).Error
		},
		"UpdateColumns": func(e *env, s *UserSession, other *User) error {
			return e.db.Model(s).UpdateColumns(map[string]any{"OwnerID": other.ID}).Error
		},
		"Update": func(e *env, s *UserSession, _ *User) error { return e.db.Model(s).Update("RevokedAt", nil).Error },
		"generics Set": func(e *env, s *UserSession, _ *User) error {
			_, err := gorm.G[UserSession](e.db).Where("id = ?", s.ID).Set(clause.Assignment{Column: clause.Column{Name: "revoked_at"}, Value: nil}).Update(e.ctx)
			return err
		},
		"generics Updates": func(e *env, s *UserSession, _ *User) error {
			_, err := gorm.G[UserSession](e.db).Where("id = ?", s.ID).Updates(e.ctx, *s)
			return err
		},
		"quoted column": func(e *env, s *UserSession, _ *User) error {
			return e.db.Model(s).Update(e.db.Statement.Quote("revoked_at"), nil).Error
		},
		"quoted owner": func(e *env, s *UserSession, other *User) error {
			return e.db.Model(s).Update(e.db.Statement.Quote("owner_id"), other.ID).Error
		},
		"qualified column": func(e *env, s *UserSession, _ *User) error {
			return e.db.Model(s).UpdateColumn(tableOf(e.t, e.db, s)+".REVOKED_AT ", nil).Error
		},
		"raw column": func(e *env, s *UserSession, _ *User) error {
			_, err := gorm.G[UserSession](e.db).Where("id = ?", s.ID).Set(clause.Assignment{Column: clause.Column{Name: "revoked_at ", Raw: true}, Value: nil}).Update(e.ctx)
			return err
		},
		"pointer to map": func(e *env, s *UserSession, other *User) error {
			return e.db.Model(s).Updates(&map[string]any{"revoked_at": nil, "owner_id": other.ID}).Error
		},
		"map with the owner": func(e *env, s *UserSession, other *User) error {
			return e.db.Model(s).Updates(map[string]any{"Owner": other}).Error
		},
		"owner's association": func(e *env, s *UserSession, other *User) error {
			return e.db.Model(s).Association("Owner").Replace(other)
		},
		"INSERT OR REPLACE": func(e *env, s *UserSession, _ *User) error {
			v := &UserSession{}
			v.ID, v.OwnerID = s.ID, s.OwnerID
			return e.db.Clauses(clause.Insert{Modifier: "OR REPLACE"}).Create(v).Error
		},
		"a struct around it": func(e *env, s *UserSession, _ *User) error {
			return e.db.Table(tableOf(e.t, e.db, s)).Save(&Wrapped{UserSession: *s}).Error
		},
		"partly loaded, by the owner": func(e *env, s *UserSession, _ *User) error {
			u := e.user
			u.Sessions = []UserSession{{Device: "x"}}
			u.Sessions[0].ID, u.Sessions[0].OwnerID = s.ID, s.OwnerID
			return e.db.Save(&u).Error
		},
		"another struct": func(e *env, s *UserSession, _ *User) error {
			return e.db.Model(s).Select("*").Updates(struct {
				RevokedAt *time.Time
				Device    string
			}{nil, "x"}).Error
		},
		"FirstOrCreate": func(e *env, s *UserSession, _ *User) error {
			return e.db.Where("id = ?", s.ID).Assign(map[string]any{"revoked_at": nil}).FirstOrCreate(&UserSession{}).Error
		},
		"FirstOrCreate stale": func(e *env, s *UserSession, _ *User) error {
			copied := *s
			return e.db.Where("1 = 0").FirstOrCreate(&copied).Error
		},
		"upsert": func(e *env, s *UserSession, _ *User) error {
			return e.db.Clauses(clause.OnConflict{UpdateAll: true}).Create(s).Error
		},
		"upsert of a new value": func(e *env, s *UserSession, _ *User) error {
			v := &UserSession{}
			v.ID, v.OwnerID = s.ID, s.OwnerID
			return e.db.Clauses(clause.OnConflict{Columns: []clause.Column{{Name: "id"}}, DoUpdates: clause.AssignmentColumns([]string{"revoked_at", "token_digest"})}).Create(v).Error
		},
		"create again": func(e *env, s *UserSession, _ *User) error { return e.db.Create(s).Error },
		"owner with loaded sessions": func(e *env, s *UserSession, _ *User) error {
			u := e.user
			u.Sessions, u.Name = []UserSession{*s}, "renamed"
			return e.db.Save(&u).Error
		},
		"another owner with loaded sessions": func(e *env, s *UserSession, other *User) error {
			other.Sessions = []UserSession{*s}
			return e.db.Save(other).Error
		},
		"FullSaveAssociations": func(e *env, s *UserSession, other *User) error {
			other.Sessions = []UserSession{*s}
			return e.db.Session(&gorm.Session{FullSaveAssociations: true}).Save(other).Error
		},
		"Association Append": func(e *env, s *UserSession, other *User) error {
			return e.db.Model(other).Association("Sessions").Append(s)
		},
		"Association Replace": func(e *env, s *UserSession, other *User) error {
			return e.db.Model(other).Association("Sessions").Replace(s)
		},
		"Association Clear": func(e *env, s *UserSession, _ *User) error {
			u := e.user
			return e.db.Model(&u).Association("Sessions").Clear()
		},
	}
}

func (s suite) races(t *testing.T) {
	// Revoke against the extension that Authenticate and Extend make.
	t.Run("R17_RevokeAgainstExtend", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{TouchInterval: time.Microsecond})
		const batch = 50
		for range s.count(50, 100_000) / batch {
			list := e.many(batch, e.clock.Now().Add(day))
			e.exec("UPDATE {t} SET idle_timeout = ?", day)
			e.clock.Advance(time.Second)
			var wg sync.WaitGroup
			for i := range list {
				v, copied := &list[i], list[i]
				wg.Go(func() { _, _ = e.sessions.Authenticate(e.ctx, string(v.Token)) })
				wg.Go(func() { _ = e.sessions.Extend(e.ctx, &copied) })
				wg.Go(func() {
					if n, err := e.sessions.Revoke(e.ctx, "x", gormsessions.WithID(v.ID)); err != nil || n != 1 {
						t.Errorf("Revoke: %d, %v", n, err)
					}
				})
			}
			wg.Wait()
			want(t, "revived", e.count(gormsessions.Active), 0)
			e.refused(list[0].Token)
			if e.db.Name() == "postgres" {
				e.exec("TRUNCATE {t} CASCADE") // deleted rows would be looked at each time
			} else {
				e.exec("DELETE FROM {t}")
			}
			if t.Failed() {
				return
			}
		}
	})

	t.Run("OneWritePerInterval", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{})
		session := e.sign()
		e.clock.Advance(2 * time.Hour)
		now := e.clock.Now()
		var wg sync.WaitGroup
		var wrong atomic.Int32
		for range 16 {
			wg.Go(func() {
				got, err := e.sessions.Authenticate(e.ctx, string(session.Token), gormsessions.WithOwner)
				if err != nil || got.LastUsedAt == nil || !got.LastUsedAt.Equal(now) || !got.ExpiresAt.Equal(now.Add(7*day)) || got.Owner == nil {
					t.Errorf("got %+v, %v", got, err)
					wrong.Add(1)
				}
			})
		}
		wg.Wait()
		want(t, "wrong answers", wrong.Load(), 0)
	})

	// between runs fn once, after the next query.
	between := func(e *env, fn func()) {
		name := "test:between"
		done := false
		_ = e.db.Callback().Query().Remove(name)
		must(t, e.db.Callback().Query().After("gorm:query").Register(name, func(*gorm.DB) {
			if !done {
				done = true
				fn()
			}
		}))
	}

	t.Run("BetweenReadAndWrite", func(t *testing.T) {
		if s.Conns == 1 {
			t.Skip("needs a second connection")
		}
		e := s.start(t, gormsessions.Config{})
		later := e.clock.Now().Add(72 * time.Hour)
		pushed := e.sign(func(u *UserSession) { u.ExpiresAt, u.IdleTimeout = &later, day })
		pin := *pushed.ExpiresAt
		between(e, func() { e.exec("UPDATE {t} SET expires_at = ?", pin.Add(72*time.Hour)) })
		must(t, e.sessions.SetExpiry(e.ctx, pushed, &pin))
		wantTime(t, "an expiry that was stored already", e.row(pushed.ID).ExpiresAt, pin)

		revoked := e.sign()
		between(e, func() { e.exec("UPDATE {t} SET revoked_at = ? WHERE id = ?", e.clock.Now(), revoked.ID) })
		_, err := e.sessions.Authenticate(e.ctx, string(revoked.Token))
		want(t, "revoked in between", err, gormsessions.ErrNoSession)
		extended := e.sign()
		between(e, func() { e.exec("UPDATE {t} SET revoked_at = ? WHERE id = ?", e.clock.Now(), extended.ID) })
		want(t, "Extend of one revoked in between", e.sessions.Extend(e.ctx, extended), gormsessions.ErrNoSession)

		// Used by somebody else in between; with scopes that FOR UPDATE would not
		// go with.
		used := e.sign()
		for name, scope := range map[string]gormsessions.Scope{
			"Joins": func(db *gorm.DB) *gorm.DB { return db.Joins("Owner") }, "Distinct": func(db *gorm.DB) *gorm.DB { return db.Distinct() }, "WithOwner": gormsessions.WithOwner,
		} {
			e.clock.Advance(2 * time.Hour)
			between(e, func() { e.exec("UPDATE {t} SET last_used_at = ? WHERE id = ?", e.clock.Now(), used.ID) })
			got, err := e.sessions.Authenticate(e.ctx, string(used.Token), scope)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			wantTime(t, name, got.LastUsedAt, e.clock.Now())
		}

		// In a transaction that sees the table as it was.
		for _, level := range []sql.IsolationLevel{sql.LevelReadCommitted, sql.LevelRepeatableRead} {
			if e.db.Name() == "sqlite" {
				break // whose writers wait for each other
			}
			v := e.sign()
			err := e.db.Transaction(func(tx *gorm.DB) error {
				must(t, tx.Find(&[]UserSession{}).Error)
				e.exec("UPDATE {t} SET revoked_at = ? WHERE id = ?", e.clock.Now(), v.ID)
				if got, err := e.sessions.With(tx).Authenticate(e.ctx, string(v.Token)); err == nil {
					t.Errorf("%v: a revoked session is accepted: %+v", level, got)
				}
				return errRollback
			}, &sql.TxOptions{Isolation: level})
			wantErr(t, level.String(), err, errRollback)
		}
	})

	t.Run("SetExpiryAgainstUse", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{TouchInterval: time.Microsecond})
		for range s.count(20, 500) {
			session := e.sign()
			e.clock.Advance(time.Second)
			expiry := e.clock.Now().Add(time.Minute)
			var wg sync.WaitGroup
			wg.Go(func() { _, _ = e.sessions.Authenticate(e.ctx, string(session.Token)) })
			wg.Go(func() {
				copied := *session
				if err := e.sessions.SetExpiry(e.ctx, &copied, &expiry); err != nil {
					t.Error(err)
				}
			})
			wg.Wait()
			wantTime(t, "the expiry that was set", e.row(session.ID).ExpiresAt, expiry)
		}
	})
}
