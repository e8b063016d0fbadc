package conformance

import (
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/gormsessions/gormsessions"
	"gorm.io/gorm"
)

func (s suite) limit(t *testing.T) {
	t.Run("R20_EvictOldest", func(t *testing.T) {
		var r recordedEvents
		e := s.start(t, gormsessions.Config{MaxPerOwner: 3, OnEvent: r.record})
		eve := e.newUser("eve")
		theirs := e.sign(func(v *UserSession) { v.OwnerID = eve.ID })
		var list []*UserSession
		for range 3 {
			e.clock.Advance(time.Minute)
			list = append(list, e.sign())
		}
		e.clock.Advance(time.Minute)
		e.authenticate(list[0]) // so the second is now the least recently used
		events := r.since(func() { list = append(list, e.sign()) })
		wantEvents(t, "evicted", events, fmt.Sprintf("revoked true %d \"limit\" 1", e.user.ID), fmt.Sprintf("created true %d \"\" 1", e.user.ID))
		e.refused(list[1].Token)
		row := e.row(list[1].ID)
		want(t, "reason", row.RevokedReason, "limit")
		wantTime(t, "RevokedAt", row.RevokedAt, e.clock.Now())
		for _, i := range []int{0, 2, 3} {
			e.authenticate(list[i])
		}
		e.authenticate(theirs)
		// What has ended does not count, and what is created ended neither.
		_, err := e.sessions.Revoke(e.ctx, "x", gormsessions.WithID(list[0].ID))
		must(t, err)
		list = append(list, e.sign())
		past := e.clock.Now().Add(-time.Second)
		e.sign(func(v *UserSession) { v.ExpiresAt = &past })
		want(t, "active", e.count(gormsessions.Active, gormsessions.ForUser(&e.user)), 3)
		e.authenticate(list[2])
	})

	t.Run("R20_EveryDoor", func(t *testing.T) {
		for _, policy := range []gormsessions.LimitPolicy{gormsessions.EvictOldest, gormsessions.Reject} {
			e := s.start(t, gormsessions.Config{MaxPerOwner: 2, OnLimit: policy})
			one := func() UserSession {
				var v UserSession
				v.OwnerID = e.user.ID
				return v
			}
			doors := map[string]func() error{
				"Create":    func() error { v := one(); return e.db.Create(&v).Error },
				"slice":     func() error { v := []UserSession{one(), one()}; return e.db.Create(&v).Error },
				"batches":   func() error { v := []UserSession{one(), one()}; return e.db.CreateInBatches(&v, 1).Error },
				"generics":  func() error { v := one(); return gorm.G[UserSession](e.db).Create(e.ctx, &v) },
				"SkipHooks": func() error { v := one(); return e.db.Session(&gorm.Session{SkipHooks: true}).Create(&v).Error },
				"without a transaction": func() error {
					v := one()
					return e.db.Session(&gorm.Session{SkipDefaultTransaction: true}).Create(&v).Error
				},
				"sessions.Create": func() error { v := one(); return e.sessions.Create(e.ctx, &v) },
				"With": func() error {
					v := one()
					return e.db.Transaction(func(tx *gorm.DB) error { return e.sessions.With(tx).Create(e.ctx, &v) })
				},
				"Association": func() error { v := one(); return e.db.Model(&e.user).Association("Sessions").Append(&v) },
				"the owner":   func() error { u := e.user; u.Sessions = []UserSession{one()}; return e.db.Save(&u).Error },
				"Save":        func() error { v := one(); return e.db.Save(&v).Error },
				"FirstOrCreate": func() error {
					v := one()
					return e.db.Where("1 = 0").FirstOrCreate(&v).Error
				},
			}
			for range 2 {
				must(t, doors["Create"]())
			}
			for name, door := range doors {
				e.clock.Advance(time.Second)
				err := door()
				if policy == gormsessions.Reject {
					wantErr(t, name, err, gormsessions.ErrTooManySessions)
				} else if err != nil {
					t.Errorf("%s: %v", name, err)
				}
				want(t, name+": active", e.count(gormsessions.Active), 2)
				e.idle()
			}
			if policy == gormsessions.Reject {
				want(t, "stored", e.count(), 2)
			}
			three := []UserSession{one(), one(), one()}
			if err := e.db.Session(&gorm.Session{CreateBatchSize: 10}).Create(&three).Error; !errors.Is(err, gormsessions.ErrTooManySessions) {
				t.Errorf("three at once: got %v", err)
			}
			want(t, "token", three[0].Token, "")
		}
	})

	t.Run("R20_Reject", func(t *testing.T) {
		var r recordedEvents
		e := s.start(t, gormsessions.Config{MaxPerOwner: 1, OnLimit: gormsessions.Reject, OnEvent: r.record})
		first := e.sign()
		v := UserSession{}
		v.OwnerID = e.user.ID
		rejected := fmt.Sprintf("rejected false %d \"limit\" 1", e.user.ID)
		for name, create := range map[string]func() error{
			"db.Create": func() error { return e.db.Create(&v).Error }, "sessions.Create": func() error { return e.sessions.Create(e.ctx, &v) },
		} {
			var err error
			wantEvents(t, name, r.since(func() { err = create() }), rejected)
			wantErr(t, name, err, gormsessions.ErrTooManySessions)
			want(t, "token", v.Token, "")
			want(t, "nothing is filled in", v.ExpiresAt, nil)
		}
		e.authenticate(first)
		// An expired one comes back only where there is room.
		past, future := e.clock.Now(), e.clock.Now().Add(time.Hour)
		must(t, e.sessions.SetExpiry(e.ctx, first, &past))
		second := e.sign()
		wantEvents(t, "SetExpiry", r.since(func() {
			wantErr(t, "SetExpiry", e.sessions.SetExpiry(e.ctx, first, &future), gormsessions.ErrTooManySessions)
		}), rejected)
		must(t, e.sessions.SetExpiry(e.ctx, second, &future)) // active: it takes no more room
		_, err := e.sessions.Revoke(e.ctx, "x", gormsessions.WithID(second.ID))
		must(t, err)
		must(t, e.sessions.SetExpiry(e.ctx, first, &future))
		e.authenticate(first)
	})

	t.Run("R20_AtOnce", func(t *testing.T) {
		for _, policy := range []gormsessions.LimitPolicy{gormsessions.EvictOldest, gormsessions.Reject} {
			for _, within := range []bool{false, true} { // a transaction that has looked before
				e := s.start(t, gormsessions.Config{MaxPerOwner: 5, OnLimit: policy})
				var wg sync.WaitGroup
				for i := range 100 {
					wg.Go(func() {
						v := UserSession{}
						v.OwnerID = e.user.ID
						create := func(tx *gorm.DB) error {
							switch i % 3 {
							case 0:
								return e.sessions.With(tx).Create(e.ctx, &v)
							case 1:
								return tx.Session(&gorm.Session{SkipDefaultTransaction: true}).Create(&v).Error
							}
							return tx.Create(&v).Error
						}
						err := error(nil)
						if within {
							err = e.db.Transaction(func(tx *gorm.DB) error {
								if err := tx.First(&User{}, e.user.ID).Error; err != nil {
									return err
								}
								return create(tx)
							})
						} else {
							err = create(e.db)
						}
						if err != nil && (policy == gormsessions.EvictOldest || !errors.Is(err, gormsessions.ErrTooManySessions)) {
							t.Errorf("create %d: %v", i, err)
						}
					})
				}
				wg.Wait()
				want(t, "active", e.count(gormsessions.Active), 5)
				e.idle()
			}
		}
	})

	t.Run("R20_OwnersAtOnce", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{MaxPerOwner: 2})
		owners := make([]User, 8)
		must(t, e.db.Create(&owners).Error)
		var wg sync.WaitGroup
		for i := range 64 {
			wg.Go(func() {
				list := make([]UserSession, 2) // of two owners, in either order
				list[0].OwnerID, list[1].OwnerID = owners[i%8].ID, owners[(i/8)%8].ID
				if err := e.db.Create(&list).Error; err != nil {
					t.Errorf("create %d: %v", i, err)
				}
			})
		}
		wg.Wait()
		for _, u := range owners {
			want(t, "active", e.count(gormsessions.Active, gormsessions.ForUser(&u)), 2)
		}
	})

	// What a create evicted is not, where it fails and its transaction goes on.
	t.Run("R20_FailedCreateEvictsNobody", func(t *testing.T) {
		var r recordedEvents
		e := s.start(t, gormsessions.Config{MaxPerOwner: 1, OnEvent: r.record})
		eve := e.newUser("eve")
		v, theirs := e.sign(), e.sign(func(v *UserSession) { v.OwnerID = eve.ID })
		r.list = nil
		must(t, e.db.Transaction(func(tx *gorm.DB) error {
			list := make([]UserSession, 3)
			list[0].OwnerID, list[1].OwnerID, list[2].OwnerID = e.user.ID, eve.ID, eve.ID
			wantErr(t, "two for one", tx.Session(&gorm.Session{CreateBatchSize: 10}).Create(&list).Error, gormsessions.ErrTooManySessions)
			twice := UserSession{}
			twice.OwnerID, twice.ID = e.user.ID, v.ID
			if tx.Create(&twice).Error == nil {
				t.Error("a duplicate was stored")
			}
			want(t, "token", twice.Token, "")
			return nil
		}))
		e.authenticate(v)
		e.authenticate(theirs)
		want(t, "revoked", len(r.of(gormsessions.EventRevoked)), 0)
		want(t, "rejected", len(r.of(gormsessions.EventRejected)), 1)
		e.idle()
	})

	t.Run("R20_HookThatReads", func(t *testing.T) {
		db, _, _, _ := s.open(t)
		sessions := gormsessions.New[Curious](gormsessions.Config{MaxPerOwner: 5})
		must(t, db.Use(sessions))
		u := User{Name: "ada"}
		must(t, db.Create(&u).Error)
		var wg sync.WaitGroup
		for i := range 60 {
			wg.Go(func() {
				var v Curious
				v.OwnerID = u.ID
				create := func() error { return db.Create(&v).Error }
				if i%2 == 0 {
					create = func() error { return sessions.Create(t.Context(), &v) }
				}
				if err := create(); err != nil {
					t.Errorf("create %d: %v", i, err)
				}
			})
		}
		wg.Wait()
		n, err := sessions.Count(t.Context(), gormsessions.Active)
		must(t, err)
		want(t, "active", n, 5)
	})

	// Whatever looks at the database before the session's INSERT, in its transaction.
	t.Run("R20_OthersThatRead", func(t *testing.T) {
		for _, by := range []string{"an association's hook", "a callback"} {
			db, _, _, _ := s.open(t)
			sessions := gormsessions.New[Packed](gormsessions.Config{MaxPerOwner: 5})
			must(t, db.Use(&reader{by == "a callback"}))
			must(t, db.AutoMigrate(&Luggage{}))
			must(t, db.Use(sessions))
			u := User{Name: "ada"}
			must(t, db.Create(&u).Error)
			var wg sync.WaitGroup
			for i := range 60 {
				wg.Go(func() {
					var v Packed
					v.OwnerID = u.ID
					if by == "an association's hook" {
						v.Luggage = &Luggage{}
					}
					create := func() error { return db.Create(&v).Error }
					if i%2 == 0 {
						create = func() error { return sessions.Create(t.Context(), &v) }
					}
					if err := create(); err != nil {
						t.Errorf("create %d: %v", i, err)
					}
				})
			}
			wg.Wait()
			n, err := sessions.Count(t.Context(), gormsessions.Active)
			must(t, err)
			want(t, "active, with "+by, n, 5)
		}
	})

	t.Run("R20_InAnotherPluginsTransaction", func(t *testing.T) {
		db, _, _, _ := s.open(t)
		families := gormsessions.New[CuriousFamily](gormsessions.Config{})
		members := gormsessions.New[CuriousMember](gormsessions.Config{MaxPerOwner: 5})
		must(t, db.Use(families))
		must(t, db.Use(members))
		u := User{Name: "ada"}
		must(t, db.Create(&u).Error)
		var wg sync.WaitGroup
		for i := range 60 {
			wg.Go(func() {
				v := CuriousFamily{Members: []CuriousMember{{}}}
				v.Members[0].OwnerID = u.ID
				if err := families.Create(t.Context(), &v); err != nil {
					t.Errorf("create %d: %v", i, err)
				}
			})
		}
		wg.Wait()
		n, err := members.Count(t.Context(), gormsessions.Active)
		must(t, err)
		want(t, "active", n, 5)
	})

	t.Run("R20_WithConditions", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{MaxPerOwner: 1, OnLimit: gormsessions.Reject})
		past, future := e.clock.Now(), e.clock.Now().Add(time.Hour)
		v := e.sign(func(v *UserSession) { v.Device, v.ExpiresAt = "tv", &past })
		e.sign()
		err := e.sessions.With(e.db.Where("device = ?", "tv")).SetExpiry(e.ctx, v, &future)
		wantErr(t, "SetExpiry", err, gormsessions.ErrTooManySessions)
	})

	t.Run("R20_Isolation", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{MaxPerOwner: 1})
		if e.db.Name() != "postgres" {
			t.Skip("the others lock what they count, or write one at a time")
		}
		err := e.db.Transaction(func(tx *gorm.DB) error {
			var v UserSession
			v.OwnerID = e.user.ID
			return tx.Create(&v).Error
		}, &sql.TxOptions{Isolation: sql.LevelRepeatableRead})
		wantErr(t, "create", err, gormsessions.ErrInvalidValue)
		wantText(t, "create", err, "READ COMMITTED")
	})

	t.Run("R48_HookPanicsInACreate", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{MaxPerOwner: 1})
		must(t, e.db.Callback().Create().After("gorm:save_after_associations").Before("gorm:after_create").Register("test:panic", func(*gorm.DB) { panic("of a hook") }))
		func() {
			defer func() { _ = recover() }()
			var v UserSession
			v.OwnerID = e.user.ID
			_ = e.db.Session(&gorm.Session{SkipDefaultTransaction: true}).Create(&v).Error
		}()
		pool, err := e.db.DB()
		must(t, err)
		config := &gorm.Config{}
		if s.Setup(config); config.SkipDefaultTransaction { // else GORM begins one all the same
			want(t, "connections in use", pool.Stats().InUse, 0)
		}
	})

	t.Run("R20_Kinds", func(t *testing.T) {
		db, _, _, _ := s.open(t)
		sessions := gormsessions.New[KindSession](gormsessions.Config{MaxPerOwner: 1})
		if db.Name() == "mysql" {
			wantText(t, "an owner without a row", db.Use(sessions), "Config.MaxPerOwner", "embed Session")
			return
		}
		must(t, db.Use(sessions))
		for range 2 {
			for _, kind := range []string{"users", "projects"} {
				v := KindSession{OwnerType: kind, OwnerID: "1"}
				must(t, db.Create(&v).Error)
			}
		}
		for range 3 { // of nobody
			must(t, db.Create(&KindSession{}).Error)
		}
		n, err := sessions.Count(t.Context(), gormsessions.Active)
		must(t, err)
		want(t, "active", n, 5)
		wantText(t, "no owner", db.Use(gormsessions.New[Guest](gormsessions.Config{MaxPerOwner: 1})), "Config.MaxPerOwner", "no owner")
	})

	t.Run("R20_CountThenInsert", func(t *testing.T) { // what the lock is for
		e := s.start(t, gormsessions.Config{})
		if e.db.Name() == "sqlite" {
			t.Skip("one writes at a time")
		}
		var start, wg sync.WaitGroup
		start.Add(10)
		for range 10 {
			wg.Go(func() {
				must(t, e.db.Transaction(func(tx *gorm.DB) error {
					n, err := e.sessions.With(tx).Count(e.ctx, gormsessions.Active)
					start.Done()
					start.Wait()
					if err != nil || n >= 5 {
						return err
					}
					v := UserSession{}
					v.OwnerID = e.user.ID
					return tx.Create(&v).Error
				}, &sql.TxOptions{}))
			})
		}
		wg.Wait()
		if n := e.count(gormsessions.Active); n <= 5 {
			t.Errorf("count-then-insert kept the limit: %d", n)
		}
	})
}

// Curious has a hook that looks at the database.
type Curious struct {
	gormsessions.Session[User, uint]
	Seen int64
}

func (c *Curious) BeforeCreate(tx *gorm.DB) error { return tx.Model(&User{}).Count(&c.Seen).Error }

// CuriousFamily is a kind of session with sessions of another kind, and a hook that
// looks at the database.
type CuriousFamily struct {
	gormsessions.Base
	Seen    int64
	Members []CuriousMember `gorm:"foreignKey:FamilyID"`
}

type CuriousMember struct {
	gormsessions.Session[User, uint]
	FamilyID *uuid.UUID
}

func (c *CuriousFamily) BeforeCreate(tx *gorm.DB) error {
	return tx.Model(&CuriousMember{}).Count(&c.Seen).Error
}

// Packed is stored after what it belongs to, which has a hook that looks at the
// database.
type Packed struct {
	gormsessions.Session[User, uint]
	LuggageID *uint
	Luggage   *Luggage
}

type Luggage struct {
	ID   uint
	Seen int64
}

func (l *Luggage) BeforeCreate(tx *gorm.DB) error { return tx.Model(&User{}).Count(&l.Seen).Error }

// reader is a plugin of the application's that may look at the database too.
type reader struct{ reads bool }

func (*reader) Name() string { return "reader" }

func (r *reader) Initialize(db *gorm.DB) error {
	if !r.reads {
		return nil
	}
	return db.Callback().Create().After("gorm:begin_transaction").Before("gorm:before_create").Register("reader:read", func(db *gorm.DB) {
		if db.Error == nil && db.Statement.Schema != nil && db.Statement.Schema.Name == "Packed" {
			var n int64
			_ = db.AddError(db.Session(&gorm.Session{NewDB: true}).Model(&User{}).Count(&n).Error)
		}
	})
}

// KindSession has owners of several kinds.
type KindSession struct {
	gormsessions.Base
	OwnerType string `gorm:"size:20"`
	OwnerID   string `gorm:"size:20"`
}

// atMost limits the pool's connections.
func (e *env) atMost(n int) {
	e.t.Helper()
	pool, err := e.db.DB()
	must(e.t, err)
	pool.SetMaxOpenConns(n)
}
