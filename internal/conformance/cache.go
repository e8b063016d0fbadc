package conformance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/gormsessions/gormsessions"
	"github.com/gormsessions/gormsessions/sessioncache"
	"gorm.io/gorm"
)

// pastCache is a scope that changes nothing; a look-up with it goes past the cache.
func pastCache(db *gorm.DB) *gorm.DB { return db }

// cachedEnv has a plugin with a cache.
type cachedEnv struct {
	*env
	cache *sessioncache.Cache
}

func (s suite) startCached(t *testing.T, config gormsessions.Config) cachedEnv {
	t.Helper()
	cache, err := sessioncache.New(sessioncache.Config{TTL: gormsessions.Never})
	must(t, err)
	t.Cleanup(func() { must(t, cache.Close()) })
	config.Cache = cache
	return cachedEnv{s.start(t, config), cache}
}

// warm makes the cache hold a session with its owner.
func (e cachedEnv) warm(v *UserSession) *UserSession {
	e.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); runtime.GC() { // of transactions that have ended
		for range 2 {
			e.authenticate(v, gormsessions.WithOwner)
		}
		before := e.cache.Stats().Hits
		if got := e.authenticate(v, gormsessions.WithOwner); e.cache.Stats().Hits > before {
			return got
		}
	}
	e.t.Fatalf("the cache does not keep the session: %+v", e.cache.Stats())
	return nil
}

// same asserts that the cache says what the database does.
func (e cachedEnv) same(what string, v *UserSession) {
	e.t.Helper()
	for _, scopes := range [][]gormsessions.Scope{nil, {gormsessions.WithOwner}} {
		got, err := e.sessions.Lookup(e.ctx, string(v.Token), scopes...)
		stored, wanted := e.sessions.Lookup(e.ctx, string(v.Token), append(scopes, pastCache)...)
		if err != wanted || !reflect.DeepEqual(got, stored) {
			e.t.Errorf("%s: with the cache %v, %+v; the database has %v, %+v", what, err, got, wanted, stored)
		}
	}
}

// onTable is another model of the sessions' table.
type onTable struct {
	ID     string
	Device string
}

func (onTable) TableName() string { return "user_sessions" }

func (s suite) cache(t *testing.T) {
	t.Run("Cache_Hit", func(t *testing.T) {
		e := s.startCached(t, gormsessions.Config{})
		v := e.sign(func(v *UserSession) { v.Data, v.Nick = map[string]any{"list": []any{"a"}}, ptr("nick") })
		first := e.warm(v)
		var got *UserSession
		want(t, "statements", len(e.log.since(func() { got = e.authenticate(v, gormsessions.WithOwner) })), 0)
		want(t, "equal", reflect.DeepEqual(got, first), true)
		e.same("a hit", v)
		want(t, "the owner of a look-up without", e.authenticate(v).Owner, (*User)(nil))

		// What a caller does with its copy is nobody else's business.
		got.Data["list"].([]any)[0], got.Data["more"] = "b", true
		*got.Nick, got.Owner.Name, *got.ExpiresAt = "other", "eve", time.Time{}
		got.TokenDigest[0]++
		e.same("a copy written to", v)

		e.clock.Advance(30 * 24 * time.Hour)
		e.refused(v.Token)
	})

	t.Run("Cache_UsedBehindTheRequest", func(t *testing.T) {
		extended := make(chan gormsessions.Event, 100)
		e := s.startCached(t, gormsessions.Config{OnEvent: func(_ context.Context, event gormsessions.Event) {
			if event.Kind == gormsessions.EventExtended {
				extended <- event
			}
		}})
		v := e.sign()
		e.warm(v)
		<-extended
		e.clock.Advance(2 * time.Hour)
		e.authenticate(v)
		select {
		case event := <-extended:
			want(t, "the session", event.SessionID, v.ID)
		case <-time.After(10 * time.Second):
			t.Fatal("the use was not written")
		}
		wantTime(t, "last used", e.row(v.ID).LastUsedAt, e.clock.Now())
		e.same("used", v)
	})

	t.Run("Cache_EveryWrite", func(t *testing.T) {
		e := s.startCached(t, gormsessions.Config{RotationGrace: time.Microsecond})
		table, owners := tableOf(t, e.db, &UserSession{}), tableOf(t, e.db, &User{})
		quoted := func(table string) string { return e.db.Statement.Quote(table) }
		by := gormsessions.WithID
		for name, write := range map[string]func(v *UserSession) error{
			"Revoke": func(v *UserSession) error { _, err := e.sessions.Revoke(e.ctx, "", by(v.ID)); return err },
			"Revoke of an owner's": func(v *UserSession) error {
				_, err := e.sessions.Revoke(e.ctx, "", gormsessions.ForUser(v.OwnerID))
				return err
			},
			"Rotate":         func(v *UserSession) error { return e.sessions.Rotate(e.ctx, copyOf(v)) },
			"Reauthenticate": func(v *UserSession) error { return e.sessions.Reauthenticate(e.ctx, copyOf(v)) },
			"Extend":         func(v *UserSession) error { e.clock.Advance(time.Minute); return e.sessions.Extend(e.ctx, copyOf(v)) },
			"SetExpiry": func(v *UserSession) error {
				return e.sessions.SetExpiry(e.ctx, copyOf(v), ptr(e.clock.Now().Add(time.Hour)))
			},
			"Save":   func(v *UserSession) error { v.Device = "x"; return e.db.Save(v).Error },
			"Update": func(v *UserSession) error { return e.db.Model(v).Update("device", "x").Error },
			"Update by ID": func(v *UserSession) error {
				return e.db.Model(&UserSession{}).Where("id = ?", v.ID).Update("device", "x").Error
			},
			"Update by other columns": func(v *UserSession) error {
				return e.db.Model(&UserSession{}).Where("visits = ?", 0).Updates(map[string]any{"device": "x"}).Error
			},
			"Update with Or": func(v *UserSession) error {
				return e.db.Model(&UserSession{}).Where("id = ?", uuid.New()).Or("visits = ?", 0).Update("device", "x").Error
			},
			"UpdateColumn": func(v *UserSession) error { return e.db.Model(v).UpdateColumn("device", "x").Error },
			"generics": func(v *UserSession) error {
				_, err := gorm.G[UserSession](e.db).Where("id = ?", v.ID).Update(e.ctx, "device", "x")
				return err
			},
			"Table": func(v *UserSession) error {
				return e.db.Table(table).Where("visits = ?", 0).Update("device", "x").Error
			},
			"another model": func(v *UserSession) error {
				if table != "user_sessions" {
					return nil
				}
				return e.db.Model(&onTable{}).Where("id = ?", v.ID).Update("device", "x").Error
			},
			"Delete":      func(v *UserSession) error { return e.db.Delete(v).Error },
			"Delete many": func(v *UserSession) error { return e.db.Where("visits = 0").Delete(&UserSession{}).Error },
			"Exec":        func(v *UserSession) error { return e.db.Exec("UPDATE " + quoted(table) + " SET device = 'x'").Error },
			"Raw": func(v *UserSession) error {
				if e.db.Name() == "mysql" {
					return nil
				}
				var ids []string
				return e.db.Raw("UPDATE " + quoted(table) + " SET device = 'x' RETURNING id").Scan(&ids).Error
			},
			"Rows": func(v *UserSession) error {
				if e.db.Name() == "mysql" {
					return nil
				}
				rows, err := e.db.Raw("UPDATE " + quoted(table) + " SET device = 'x' RETURNING id").Rows()
				if err != nil {
					return err
				}
				for rows.Next() {
				}
				return errors.Join(rows.Err(), rows.Close())
			},
			"Connection": func(v *UserSession) error {
				return e.db.Connection(func(tx *gorm.DB) error { return tx.Exec("UPDATE " + quoted(table) + " SET device = 'x'").Error })
			},
			"the owner, Save":   func(v *UserSession) error { return e.db.Save(&User{ID: v.OwnerID, Name: "x"}).Error },
			"the owner, Update": func(v *UserSession) error { return e.db.Model(&User{ID: v.OwnerID}).Update("name", "x").Error },
			"the owner, Update by ID": func(v *UserSession) error {
				return e.db.Model(&User{}).Where("id = ?", v.OwnerID).Update("name", "x").Error
			},
			"the owner, Update by text": func(v *UserSession) error {
				return e.db.Model(&User{}).Where("id = ?", fmt.Sprint("0", v.OwnerID)).Update("name", "x").Error
			},
			"the owner, Update by name": func(v *UserSession) error {
				return e.db.Model(&User{}).Where("name LIKE ?", "u%").Update("name", "x").Error
			},
			"the owner, Delete": func(v *UserSession) error { return e.db.Delete(&User{}, v.OwnerID).Error },
			"the owner, Delete for good": func(v *UserSession) error {
				return e.db.Unscoped().Delete(&User{ID: v.OwnerID}).Error
			},
			"the owner, Exec": func(v *UserSession) error { return e.db.Exec("UPDATE " + quoted(owners) + " SET name = 'x'").Error },
			"the owner, a transaction": func(v *UserSession) error {
				return e.db.Transaction(func(tx *gorm.DB) error { return tx.Model(&User{ID: v.OwnerID}).Update("name", "x").Error })
			},
			"a transaction": func(v *UserSession) error {
				return e.db.Transaction(func(tx *gorm.DB) error {
					_, err := e.sessions.With(tx).Revoke(e.ctx, "", by(v.ID))
					return err
				})
			},
			"a nested transaction": func(v *UserSession) error {
				return e.db.Transaction(func(tx *gorm.DB) error {
					return tx.Transaction(func(tx *gorm.DB) error { return e.sessions.With(tx).Rotate(e.ctx, copyOf(v)) })
				})
			},
			"a transaction by hand": func(v *UserSession) error {
				tx := e.db.Begin()
				tx.Delete(&UserSession{}, "id = ?", v.ID)
				return tx.Commit().Error
			},
			"theft": func(v *UserSession) error {
				w := copyOf(v)
				if err := e.sessions.Rotate(e.ctx, w); err != nil {
					return err
				}
				e.clock.Advance(time.Second)
				e.warm(w)
				_, err := e.sessions.Authenticate(e.ctx, string(v.Token))
				wantErr(e.t, "theft", err, gormsessions.ErrReused)
				e.same("theft", w)
				return nil
			},
		} {
			u := e.newUser("u" + strings.ReplaceAll(name, " ", ""))
			v := e.sign(func(v *UserSession) { v.OwnerID = u.ID })
			before := e.warm(v)
			must(t, write(copyOf(v)))
			e.clock.Advance(time.Second)
			e.same(name, v)
			if now, err := e.sessions.Lookup(e.ctx, string(v.Token), gormsessions.WithOwner, pastCache); err == nil && reflect.DeepEqual(now, before) &&
				!strings.Contains("another model Raw Rows the owner, Update by text", name) {
				t.Errorf("%s changed nothing", name)
			}
		}
	})

	t.Run("Cache_Limit", func(t *testing.T) {
		e := s.startCached(t, gormsessions.Config{MaxPerOwner: 1})
		for i, create := range []func(*UserSession) error{
			func(v *UserSession) error { return e.sessions.Create(e.ctx, v) },
			func(v *UserSession) error { return e.db.Create(v).Error },
			func(v *UserSession) error {
				return e.db.Transaction(func(tx *gorm.DB) error { return tx.Create(v).Error })
			},
		} {
			v := e.sign()
			e.warm(v)
			must(t, create(&UserSession{Session: gormsessions.Session[User, uint]{OwnerID: e.user.ID}}))
			e.same(fmt.Sprint("door ", i), v)
			e.refused(v.Token)
		}
	})

	t.Run("Cache_Transaction", func(t *testing.T) {
		if s.Database.Name == "memory" {
			t.Skip("one connection")
		}
		e := s.startCached(t, gormsessions.Config{})
		v := e.sign()
		e.warm(v)
		revoke := func(tx *gorm.DB) {
			t.Helper()
			_, err := e.sessions.With(tx).Revoke(e.ctx, "", gormsessions.WithID(v.ID))
			must(t, err)
		}
		tx := e.db.Begin()
		revoke(tx)
		e.same("not committed yet", v)
		if _, err := e.sessions.With(tx).Authenticate(e.ctx, string(v.Token)); err != gormsessions.ErrNoSession {
			t.Errorf("inside: %v", err)
		}
		must(t, tx.Rollback().Error)
		e.authenticate(v)
		tx = nil

		// Once the transaction is garbage, the cache serves again.
		served := func() bool {
			before := e.cache.Stats().Hits
			e.authenticate(v)
			return e.cache.Stats().Hits > before
		}
		deadline := time.Now().Add(20 * time.Second)
		for !served() {
			if time.Now().After(deadline) {
				t.Fatal("the cache does not serve again")
			}
			runtime.GC()
		}

		tx = e.db.Begin()
		revoke(tx)
		e.authenticate(v)
		must(t, tx.Commit().Error)
		e.refused(v.Token)
	})

	// A reader that the database has answered, and that is late to tell the cache.
	t.Run("Cache_LateReader", func(t *testing.T) {
		if s.Database.Name == "memory" {
			t.Skip("one connection")
		}
		e := s.startCached(t, gormsessions.Config{})
		stale := e.lateReader()
		want(t, "stale", stale, false)
	})

	t.Run("Cache_LateReaderOfANaiveCache", func(t *testing.T) {
		if s.Database.Name == "memory" {
			t.Skip("one connection")
		}
		e := s.start(t, gormsessions.Config{Cache: &naiveCache{}})
		want(t, "stale", cachedEnv{e, nil}.lateReader(), true)
	})

	t.Run("Cache_RevokeAgainstAuthenticate", func(t *testing.T) {
		if s.Variant.Name != plain.Name {
			t.Skip("once on each database")
		}
		e := s.startCached(t, gormsessions.Config{})
		rounds := s.count(100, 1_000)
		if n, err := strconv.Atoi(os.Getenv("GORMSESSIONS_ROUNDS")); err == nil {
			rounds = n
		}
		stale := 0
		for done := 0; done < rounds; done += 100 {
			list := make([]UserSession, 100)
			for i := range list {
				list[i].OwnerID = e.user.ID
			}
			must(t, e.db.Create(&list).Error)
			for _, v := range list {
				token := string(v.Token)
				started := make(chan struct{})
				var reader sync.WaitGroup
				reader.Go(func() { // one: it spins, and Revoke needs a processor too
					_, err := e.sessions.Authenticate(e.ctx, token)
					close(started)
					for err == nil {
						_, err = e.sessions.Authenticate(e.ctx, token)
					}
					if err != gormsessions.ErrNoSession {
						t.Error(err)
					}
				})
				<-started
				_, err := e.sessions.Revoke(e.ctx, "", gormsessions.WithID(v.ID))
				must(t, err)
				if _, err := e.sessions.Authenticate(e.ctx, token); err != gormsessions.ErrNoSession {
					stale++
				}
				reader.Wait()
				if _, err := e.sessions.Authenticate(e.ctx, token); err != gormsessions.ErrNoSession {
					stale++
				}
			}
		}
		want(t, "stale", stale, 0)
		if stats := e.cache.Stats(); stats.Hits == 0 {
			t.Errorf("the cache took no part: %+v", stats)
		}
		t.Logf("%d rounds: %+v", rounds, e.cache.Stats())
	})

	t.Run("Cache_Registration", func(t *testing.T) {
		e := s.startCached(t, gormsessions.Config{})
		other := gormsessions.New[KindSession](gormsessions.Config{Cache: e.cache})
		if e.db.Use(other) == nil {
			t.Error("one cache for two plugins was accepted")
		}
		v := KindSession{OwnerType: "users", OwnerID: "1"}
		wantErr(t, "its model is not registered", e.db.Create(&v).Error, gormsessions.ErrUnsafeCreate)
	})
}

func copyOf[T any](v *T) *T { c := *v; return &c }

// lateReader revokes a session while another call, to which the database has said
// that it is active, has not stored it yet; and reports whether it is accepted then.
func (e cachedEnv) lateReader() bool {
	v := e.sign()
	e.authenticate(v)
	answered, goOn := make(chan struct{}), make(chan struct{})
	var first atomic.Bool
	must(e.t, e.db.Callback().Query().After("gorm:query").Register("test:late", func(db *gorm.DB) {
		if first.CompareAndSwap(false, true) {
			close(answered)
			<-goOn
		}
	}))
	var late sync.WaitGroup
	late.Go(func() { _, _ = e.sessions.Authenticate(e.ctx, string(v.Token)) })
	<-answered
	_, err := e.sessions.Revoke(e.ctx, "", gormsessions.WithID(v.ID))
	must(e.t, err)
	close(goOn)
	late.Wait()
	_, err = e.sessions.Authenticate(e.ctx, string(v.Token))
	return err == nil
}

// naiveCache forgets what changes, and no more.
type naiveCache struct{ values sync.Map }

func (c *naiveCache) Migrate(*gorm.DB, gormsessions.CacheTables) error { return nil }
func (c *naiveCache) Drop(*gorm.DB, gormsessions.CacheTables) error    { return nil }
func (c *naiveCache) Open(*gorm.DB, gormsessions.CacheTables) error    { return nil }
func (c *naiveCache) Clock() uint64                                    { return 0 }

func (c *naiveCache) Get(key gormsessions.CacheKey) any {
	v, _ := c.values.Load(key)
	return v
}

func (c *naiveCache) Put(key gormsessions.CacheKey, value any, _ uint64, _ ...gormsessions.CacheTag) {
	c.values.Store(key, value)
}

func (c *naiveCache) Changed(...gormsessions.CacheTag) { c.values.Clear() }

func (c *naiveCache) Pending(...gormsessions.CacheTag) func() {
	c.values.Clear()
	return c.values.Clear
}
