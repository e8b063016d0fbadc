package conformance

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/gormsessions/gormsessions"
	"gorm.io/gorm"
)

// recordedEvents keeps the events that it is told of.
type recordedEvents struct {
	mu   sync.Mutex
	list []gormsessions.Event
}

func (r *recordedEvents) record(_ context.Context, e gormsessions.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, e)
}

func (r *recordedEvents) of(kind gormsessions.EventKind) []gormsessions.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(r.list), func(e gormsessions.Event) bool { return e.Kind != kind })
}

// since runs fn and returns the events that came, as "kind id-known owner reason count".
func (r *recordedEvents) since(fn func()) []string {
	r.mu.Lock()
	r.list = nil
	r.mu.Unlock()
	fn()
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []string
	for _, e := range r.list {
		list = append(list, fmt.Sprintf("%s %v %v %q %d", e.Kind, e.SessionID != uuid.Nil, e.Owner, e.Reason, e.Count))
	}
	return list
}

func wantEvents(t *testing.T, what string, got []string, wanted ...string) {
	t.Helper()
	if !slices.Equal(got, wanted) {
		t.Errorf("%s: got events %q, want %q", what, got, wanted)
	}
}

// Audit is a table of what happened.
type Audit struct {
	ID        uint
	Kind      string
	SessionID uuid.UUID `gorm:"type:varchar(36)"`
	Reason    string
}

// Family is a kind of session with sessions of another kind.
type Family struct {
	gormsessions.Session[User, uint]
	Members []Member `gorm:"foreignKey:FamilyID"`
}

type Member struct {
	gormsessions.Session[User, uint]
	FamilyID *uuid.UUID
}

// Node is a kind of session with sessions of its own kind.
type Node struct {
	gormsessions.Session[User, uint]
	ParentID *uuid.UUID
	Children []Node `gorm:"foreignKey:ParentID"`
	Fails    bool   `gorm:"-"`
}

func (n *Node) AfterCreate(*gorm.DB) error {
	if n.Fails {
		return errRollback
	}
	return nil
}

func (s suite) events(t *testing.T) {
	t.Run("Events", func(t *testing.T) {
		var r recordedEvents
		e := s.start(t, gormsessions.Config{OnEvent: r.record})
		owner := fmt.Sprint(e.user.ID)
		created, extended := "created true "+owner+` "" 1`, "extended true "+owner+` "" 1`
		var v *UserSession
		wantEvents(t, "create", r.since(func() { v = e.sign() }), created)
		wantEvents(t, "sessions.Create", r.since(func() {
			must(t, e.sessions.Create(e.ctx, &UserSession{Session: gormsessions.Session[User, uint]{OwnerID: e.user.ID}}))
		}), created)
		wantEvents(t, "a slice", r.since(func() {
			list := make([]UserSession, 3)
			for i := range list {
				list[i].OwnerID = e.user.ID
			}
			must(t, e.db.Create(&list).Error)
		}), created, created, created)
		wantEvents(t, "refused", r.since(func() {
			if e.db.Create(&UserSession{}).Error == nil {
				t.Error("a session without an owner was created")
			}
		}))
		wantEvents(t, "dry run", r.since(func() {
			must(t, e.db.Session(&gorm.Session{DryRun: true}).Create(&UserSession{Session: gormsessions.Session[User, uint]{OwnerID: e.user.ID}}).Error)
		}))
		wantEvents(t, "first use", r.since(func() { e.authenticate(v) }), extended)
		wantEvents(t, "second use", r.since(func() { e.authenticate(v) }))
		wantEvents(t, "Lookup", r.since(func() { _, _ = e.sessions.Lookup(e.ctx, string(v.Token)) }))
		wantEvents(t, "Extend", r.since(func() { must(t, e.sessions.Extend(e.ctx, v)) }), extended)
		wantEvents(t, "SetExpiry", r.since(func() { must(t, e.sessions.SetExpiry(e.ctx, v, nil)) }), extended)
		wantEvents(t, "Rotate", r.since(func() { must(t, e.sessions.Rotate(e.ctx, v)) }), "rotated true "+owner+` "" 1`)
		wantEvents(t, "Revoke", r.since(func() {
			n, err := e.sessions.Revoke(e.ctx, "stolen", gormsessions.ForUser(&e.user), gormsessions.Except(v))
			must(t, err)
			want(t, "revoked", n, 4)
		}), slices.Repeat([]string{"revoked true " + owner + ` "stolen" 1`}, 4)...)
		wantEvents(t, "Revoke of none", r.since(func() {
			n, err := e.sessions.Revoke(e.ctx, "again", gormsessions.Revoked)
			must(t, err)
			want(t, "revoked", n, 0)
		}))
		wantEvents(t, "Prune", r.since(func() {
			n, err := e.sessions.Prune(e.ctx)
			must(t, err)
			want(t, "pruned", n, 4)
		}), `pruned false <nil> "" 4`)
		wantEvents(t, "an owner with sessions", r.since(func() {
			u := User{Name: "eve", Sessions: []UserSession{{}, {}}}
			must(t, e.db.Create(&u).Error)
			owner = fmt.Sprint(u.ID)
		}), slices.Repeat([]string{"created true " + fmt.Sprint(e.user.ID+1) + ` "" 1`}, 2)...)
		for _, event := range r.list {
			want(t, "time", event.Time, e.clock.Now())
		}
	})

	// A session that has sessions of another kind: each plugin hears of its own, once
	// the transaction has committed that either of them began.
	t.Run("EventsOfSeveralPlugins", func(t *testing.T) {
		var ofFamilies, ofMembers recordedEvents
		e := s.start(t, gormsessions.Config{})
		families := gormsessions.New[Family](gormsessions.Config{OnEvent: ofFamilies.record})
		members := gormsessions.New[Member](gormsessions.Config{OnEvent: ofMembers.record, MaxPerOwner: 1})
		must(t, e.db.Use(families))
		must(t, e.db.Use(members))
		owner := fmt.Sprint(e.user.ID)
		created := "created true " + owner + ` "" 1`
		one := func() *Family {
			v := &Family{Members: []Member{{}}}
			v.OwnerID, v.Members[0].OwnerID = e.user.ID, e.user.ID
			return v
		}
		evicting := []string{created}
		for name, create := range map[string]func() error{
			"sessions.Create": func() error { return families.Create(e.ctx, one()) },
			"db.Create":       func() error { return e.db.Create(one()).Error },
		} {
			heard := ofMembers.since(func() {
				wantEvents(t, name, ofFamilies.since(func() { must(t, create()) }), created)
			})
			wantEvents(t, name+": of the other", heard, evicting...)
			evicting = []string{"revoked true " + owner + ` "limit" 1`, created}
		}
	})

	t.Run("EventsOfARolledBackStatement", func(t *testing.T) {
		var r recordedEvents
		e := s.start(t, gormsessions.Config{OnEvent: r.record})
		wantEvents(t, "the owner's hook fails", r.since(func() {
			must(t, e.db.Callback().Create().After("gorm:after_create").Before("gorm:commit_or_rollback_transaction").Register("test:fail", func(db *gorm.DB) {
				if db.Statement.Table == tableOf(t, e.db, &User{}) {
					_ = db.AddError(errRollback)
				}
			}))
			err := e.db.Session(&gorm.Session{}).Create(&User{Sessions: []UserSession{{}}}).Error
			wantErr(t, "create", err, errRollback)
			must(t, e.db.Callback().Create().Remove("test:fail"))
		}), s.storedThough(`created true 2 "" 1`)...)
	})

	// Sessions that are stored through one of their own kind share its fate.
	t.Run("EventsOfNestedSessions", func(t *testing.T) {
		var r recordedEvents
		e := s.start(t, gormsessions.Config{})
		nodes := gormsessions.New[Node](gormsessions.Config{OnEvent: r.record, MaxPerOwner: 4})
		must(t, e.db.Use(nodes))
		created := fmt.Sprintf(`created true %d "" 1`, e.user.ID)
		one := func() *Node {
			v := &Node{Children: []Node{{}}}
			v.OwnerID, v.Children[0].OwnerID = e.user.ID, e.user.ID
			return v
		}
		doors := map[string]func(*Node) error{
			"db.Create":       func(v *Node) error { return e.db.Create(v).Error },
			"sessions.Create": func(v *Node) error { return nodes.Create(e.ctx, v) },
		}
		for name, create := range doors {
			v := one()
			wantEvents(t, name, r.since(func() { must(t, create(v)) }), created, created)
			want(t, "tokens", v.Token != "" && v.Children[0].Token != "", true)
		}
		for name, create := range doors {
			if name == "db.Create" && s.storedThough("it failed") != nil {
				continue
			}
			v := one()
			v.Fails = true
			wantEvents(t, name+" that fails", r.since(func() { wantErr(t, name, create(v), errRollback) }))
			want(t, name+": tokens of what is not there", v.Token+v.Children[0].Token, "")
		}
	})

	// The row that a handler writes shares the fate of what it tells of.
	t.Run("EventDB", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{OnEvent: func(_ context.Context, event gormsessions.Event) {
			must(t, event.DB().Create(&Audit{Kind: string(event.Kind), SessionID: event.SessionID, Reason: event.Reason}).Error)
		}})
		must(t, e.db.AutoMigrate(&Audit{}))
		rows := func() (n int64) {
			t.Helper()
			must(t, e.db.Model(&Audit{}).Count(&n).Error)
			return n
		}
		v := e.sign()
		want(t, "rows", rows(), 1)
		err := e.db.Transaction(func(tx *gorm.DB) error {
			sessions := e.sessions.With(tx)
			must(t, sessions.Rotate(e.ctx, v))
			_, err := sessions.Revoke(e.ctx, "x", gormsessions.ForUser(&e.user))
			must(t, err)
			must(t, tx.Create(&UserSession{Session: gormsessions.Session[User, uint]{OwnerID: e.user.ID}}).Error)
			return errRollback
		})
		wantErr(t, "rolled back", err, errRollback)
		want(t, "rows", rows(), 1)
		// A client that has gone does not keep the row from being written.
		ctx, cancel := context.WithCancel(e.ctx)
		must(t, e.db.Callback().Update().After("gorm:update").Register("test:cancel", func(*gorm.DB) { cancel() }))
		must(t, e.sessions.Extend(ctx, v))
		must(t, e.db.Callback().Update().Remove("test:cancel"))
		want(t, "rows", rows(), 2)
	})

	t.Run("EventDBOfARejection", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{MaxPerOwner: 1, OnLimit: gormsessions.Reject, OnEvent: func(_ context.Context, event gormsessions.Event) {
			must(t, event.DB().Create(&Audit{Kind: string(event.Kind)}).Error)
		}})
		must(t, e.db.AutoMigrate(&Audit{}))
		e.atMost(1)
		e.sign()
		one := func() *UserSession {
			return &UserSession{Session: gormsessions.Session[User, uint]{OwnerID: e.user.ID}}
		}
		for i, create := range []func() error{
			func() error { return e.db.Create(one()).Error },
			func() error { return e.sessions.Create(e.ctx, one()) },
			func() error { u := e.user; u.Sessions = []UserSession{*one()}; return e.db.Save(&u).Error },
		} {
			wantErr(t, "create", create(), gormsessions.ErrTooManySessions)
			var n int64
			must(t, e.db.Model(&Audit{}).Where("kind = ?", "rejected").Count(&n).Error)
			want(t, "rows", n, int64(i+1))
		}
	})

	t.Run("R48_OnEventPanics", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{MaxPerOwner: 2, OnEvent: func(context.Context, gormsessions.Event) { panic("of the handler") }})
		for range 3 {
			e.authenticate(e.sign())
		}
		v := e.sign()
		must(t, e.sessions.Rotate(e.ctx, v))
		must(t, e.sessions.Extend(e.ctx, v))
		n, err := e.sessions.Revoke(e.ctx, "x", gormsessions.ForUser(&e.user))
		must(t, err)
		want(t, "revoked", n, 2)
		e.clock.Advance(time.Second)
		_, err = e.sessions.Prune(e.ctx)
		must(t, err)
		e.idle()
	})

	t.Run("R48_HookPanics", func(t *testing.T) {
		for _, config := range []gormsessions.Config{{}, {MaxPerOwner: 1}, {OnEvent: func(context.Context, gormsessions.Event) {}}} {
			e := s.start(t, config)
			v := e.sign()
			for _, place := range []string{"gorm:create", "gorm:query", "gorm:update", "gorm:delete"} {
				name := "test:panic"
				hook := func(*gorm.DB) { panic("of a hook") }
				cb := e.db.Callback()
				must(t, cb.Create().After(place).Before("gorm:commit_or_rollback_transaction").Register(name, hook))
				must(t, cb.Query().After(place).Register(name, hook))
				must(t, cb.Update().After(place).Register(name, hook))
				for what, call := range map[string]func(){
					"Create": func() {
						_ = e.sessions.Create(e.ctx, &UserSession{Session: gormsessions.Session[User, uint]{OwnerID: e.user.ID}})
					},
					"Authenticate": func() { _, _ = e.sessions.Authenticate(e.ctx, string(v.Token)) },
					"Extend":       func() { _ = e.sessions.Extend(e.ctx, v) },
					"Rotate":       func() { _ = e.sessions.Rotate(e.ctx, v) },
					"Revoke":       func() { _, _ = e.sessions.Revoke(e.ctx, "x", gormsessions.ForUser(&e.user)) },
					"Prune":        func() { _, _ = e.sessions.Prune(e.ctx) },
				} {
					func() {
						defer func() { _ = recover() }()
						call()
					}()
					if pool, _ := e.db.DB(); pool.Stats().InUse > 0 {
						t.Fatalf("%s with a panic after %s: a connection is in use", what, place)
					}
				}
				_, _, _ = cb.Create().Remove(name), cb.Query().Remove(name), cb.Update().Remove(name)
			}
			e.idle()
			e.authenticate(v)
		}
	})
}

// storedThough is what stands although the statement failed: without GORM's
// transaction nothing is rolled back.
func (s suite) storedThough(events ...string) []string {
	config := &gorm.Config{}
	s.Setup(config)
	if config.SkipDefaultTransaction {
		return events
	}
	return nil
}

// idle asserts that no connection is in use.
func (e *env) idle() {
	e.t.Helper()
	pool, err := e.db.DB()
	must(e.t, err)
	want(e.t, "connections in use", pool.Stats().InUse, 0)
}
