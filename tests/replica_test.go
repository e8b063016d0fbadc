package tests

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/gormsessions/gormsessions"
	"github.com/gormsessions/gormsessions/internal/conformance"
	"github.com/gormsessions/gormsessions/sessiontest"
	"github.com/gormsessions/gormsessions/tests/internal/pgserver"
	"gorm.io/driver/postgres"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
	"gorm.io/plugin/dbresolver"
)

// behind is how far the replica is behind its primary: longer than what must be seen
// at once takes on a busy machine.
const behind = 5 * time.Second

// cluster is a primary with a replica behind it.
type cluster struct{ primary, replica *pgserver.Server }

// nodeConfig is how an application is set up in front of them.
type nodeConfig struct {
	schema      string
	config      gormsessions.Config
	pluginFirst bool // to db.Use, then the resolver
	prepared    bool
	table       bool // a resolver for the sessions' table alone
	sources     bool // the *gorm.DB itself is opened on the replica
}

// node is one application: a *gorm.DB on the primary, which reads from the replica.
type node struct {
	name     string
	how      nodeConfig
	db       *gorm.DB
	sessions *gormsessions.Plugin[conformance.UserSession]
	clock    *sessiontest.Clock
	old      *conformance.UserSession // that the replica has, too
}

func (c cluster) node(t *testing.T, how nodeConfig) *node {
	t.Helper()
	search := " search_path=" + how.schema
	primary, replica := postgres.Open(c.primary.DSN()+search), postgres.Open(c.replica.DSN()+search)
	register := dbresolver.Config{Replicas: []gorm.Dialector{replica}}
	own := primary
	if how.sources {
		own, register.Sources = postgres.Open(c.replica.DSN()+search), []gorm.Dialector{primary}
	}
	n := &node{how: how, clock: sessiontest.NewClock(time.Now()), sessions: gormsessions.New[conformance.UserSession](how.config)}
	var err error
	n.db, err = gorm.Open(own, &gorm.Config{NowFunc: n.clock.Now, PrepareStmt: how.prepared, Logger: logger.Discard})
	if err != nil {
		t.Fatal(err)
	}
	var tables []any
	if how.table {
		tables = []any{&conformance.UserSession{}}
	}
	resolver := dbresolver.Register(register, tables...)
	pool, err := n.db.DB()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		closePools(resolver)
		_ = pool.Close()
	})
	plugins := []gorm.Plugin{resolver, n.sessions}
	if how.pluginFirst {
		slices.Reverse(plugins)
	}
	for _, p := range plugins {
		if err := n.db.Use(p); err != nil {
			t.Fatal(err)
		}
	}
	pool.SetMaxOpenConns(3)
	resolver.SetMaxOpenConns(3)
	return n
}

// follows waits until the replica has what fn asks for.
func follows(t *testing.T, fn func() error) {
	t.Helper()
	if err := pgserver.Until(behind+20*time.Second, fn); err != nil {
		t.Fatalf("the replica does not follow: %v", err)
	}
}

// TestR52StreamingReplica asks everything right after it was changed, while the replica
// that GORM reads from is seconds behind.
func TestR52StreamingReplica(t *testing.T) {
	c := cluster{primary: pgserver.New(t)}
	c.replica = c.primary.Replica(behind)
	configs := map[string]gormsessions.Config{
		"plain":             {},
		"limits and events": {MaxPerOwner: 2, OnEvent: func(context.Context, gormsessions.Event) {}},
	}
	var nodes []*node
	start := func(name string, how nodeConfig) {
		t.Helper()
		how.schema = fmt.Sprintf("r52_%d", len(nodes))
		n := c.start(t, how)
		n.name = name
		nodes = append(nodes, n)
	}
	for name, config := range configs {
		start(name, nodeConfig{config: config})
		start(name+", prepared", nodeConfig{config: config, prepared: true})
		start(name+", the plugin first", nodeConfig{config: config, pluginFirst: true})
		start(name+", the plugin first, prepared", nodeConfig{config: config, pluginFirst: true, prepared: true})
		start(name+", one table", nodeConfig{config: config, table: true})
		start(name+", opened on the replica", nodeConfig{config: config, sources: true})
		start(name+", opened on the replica, prepared", nodeConfig{config: config, sources: true, prepared: true})
	}
	// From then on the replica has the tables, and one session in each.
	for _, n := range nodes {
		follows(t, func() error {
			_, err := n.asked().Lookup(t.Context(), string(n.old.Token))
			return err
		})
	}
	for _, n := range nodes {
		t.Run(n.name, n.run)
	}
	for _, n := range nodes {
		follows(t, func() error {
			if _, err := n.asked().Lookup(t.Context(), string(n.old.Token)); !errors.Is(err, gormsessions.ErrNoSession) {
				return fmt.Errorf("%s: a revoked session: got %v, want ErrNoSession", n.name, err)
			}
			return nil
		})
	}
}

// start makes an application's tables and a first session.
func (c cluster) start(t *testing.T, how nodeConfig) *node {
	t.Helper()
	admin, err := gorm.Open(postgres.Open(c.primary.DSN()), &gorm.Config{})
	if err != nil {
		t.Fatal(err)
	}
	err = admin.Exec("CREATE SCHEMA " + how.schema).Error
	if pool, err := admin.DB(); err == nil {
		_ = pool.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	n := c.node(t, how)
	c.node(t, how) // another at once, which must not ask the replica whether the tables are there
	n.old = n.sign(t, n.user(t, "ada"))
	return n
}

// asked are the sessions as the replica has them.
func (n *node) asked() *gormsessions.Plugin[conformance.UserSession] {
	return n.sessions.With(n.db.Clauses(dbresolver.Read))
}

func (n *node) user(t *testing.T, name string) conformance.User {
	t.Helper()
	u := conformance.User{Name: name}
	if err := n.db.Create(&u).Error; err != nil {
		t.Fatal(err)
	}
	return u
}

func (n *node) sign(t *testing.T, u conformance.User) *conformance.UserSession {
	t.Helper()
	s := &conformance.UserSession{}
	s.OwnerID = u.ID
	if err := n.sessions.Create(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	return s
}

func (n *node) run(t *testing.T) {
	ctx, how, db, sessions, old := t.Context(), n.how, n.db, n.sessions, n.old
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	user := func(name string) conformance.User { t.Helper(); return n.user(t, name) }
	sign := func(u conformance.User) *conformance.UserSession { t.Helper(); return n.sign(t, u) }
	asked := n.asked
	found := func(s *conformance.UserSession, scopes ...gormsessions.Scope) *conformance.UserSession {
		t.Helper()
		got, err := sessions.Authenticate(ctx, string(s.Token), scopes...)
		must("Authenticate", err)
		if _, err = sessions.Lookup(ctx, string(s.Token), scopes...); err != nil {
			t.Errorf("Lookup: %v", err)
		}
		return got
	}
	refused := func(what string, s *conformance.UserSession) {
		t.Helper()
		if _, err := sessions.Authenticate(ctx, string(s.Token)); !errors.Is(err, gormsessions.ErrNoSession) {
			t.Errorf("Authenticate, %s: got %v, want ErrNoSession", what, err)
		}
		if _, err := sessions.Lookup(ctx, string(s.Token)); !errors.Is(err, gormsessions.ErrNoSession) {
			t.Errorf("Lookup, %s: got %v, want ErrNoSession", what, err)
		}
	}

	bob := user("bob")
	s := sign(bob)
	if got := found(s, gormsessions.WithOwner); got.Owner == nil || got.Owner.Name != "bob" {
		t.Errorf("WithOwner: got %+v, want bob", got.Owner)
	}
	if got := found(s, func(db *gorm.DB) *gorm.DB { return db.Preload("Owner") }); got.Owner == nil {
		t.Error("Preload in a scope found no owner")
	}
	byGORM := &conformance.UserSession{}
	byGORM.OwnerID = bob.ID
	must("db.Create", db.Create(byGORM).Error)
	found(byGORM)
	if got, err := sessions.Get(ctx, gormsessions.WithToken(string(s.Token))); err != nil || got.ID != s.ID {
		t.Errorf("Get: got %v", err)
	}
	if list, err := sessions.List(ctx, gormsessions.ForUser(&bob), gormsessions.Active); err != nil || len(list) != 2 {
		t.Errorf("List: got %d, %v; want 2", len(list), err)
	}
	if count, err := sessions.Count(ctx, gormsessions.ForUser(&bob)); err != nil || count != 2 {
		t.Errorf("Count: got %d, %v; want 2", count, err)
	}

	// The controls: GORM itself asks the replica, which has nothing of this; so do
	// the methods, when they are told to.
	var list []conformance.UserSession
	if err := db.Scopes(gormsessions.WithToken(string(s.Token))).Find(&list).Error; err != nil || len(list) != 0 {
		t.Errorf("Find: got %d sessions, %v: the replica is not behind, or not asked", len(list), err)
	}
	if _, err := asked().Lookup(ctx, string(s.Token)); !errors.Is(err, gormsessions.ErrNoSession) {
		t.Errorf("Lookup, asked of the replica: got %v, want ErrNoSession", err)
	}
	if list, err := asked().List(ctx, gormsessions.ForUser(&bob)); err != nil || len(list) != 0 {
		t.Errorf("List, asked of the replica: got %d, %v; want none", len(list), err)
	}
	if count, err := asked().Count(ctx, gormsessions.ForUser(&bob)); err != nil || count != 0 {
		t.Errorf("Count, asked of the replica: got %d, %v; want 0", count, err)
	}

	// One that the replica knows, and goes on taking for active.
	ended, err := sessions.Revoke(ctx, "test", gormsessions.WithID(old.ID))
	if err != nil || ended != 1 {
		t.Fatalf("Revoke: got %d, %v; want 1", ended, err)
	}
	refused("revoked", old)
	if _, err := asked().Lookup(ctx, string(old.Token)); err != nil {
		t.Errorf("Lookup, asked of the replica: got %v, want the revoked session", err)
	}
	list = nil
	if err := db.Scopes(gormsessions.Active, gormsessions.WithID(old.ID)).Find(&list).Error; err != nil || len(list) != 1 {
		t.Errorf("Find: got %d sessions, %v; want the revoked one", len(list), err)
	}

	// Every method that writes what it has read.
	n.clock.Advance(2 * time.Hour)
	extended := *found(s).ExpiresAt // by the use
	n.clock.Advance(time.Minute)
	must("Extend", sessions.Extend(ctx, s))
	if !s.ExpiresAt.After(extended) {
		t.Errorf("Extend: got %v, want later than %v", s.ExpiresAt, extended)
	}
	before := *s
	must("Rotate", sessions.Rotate(ctx, s))
	found(s)
	found(&before) // in its grace
	must("Reauthenticate", sessions.Reauthenticate(ctx, s))
	if !found(s).AuthenticatedAt.Equal(n.clock.Now().UTC().Truncate(time.Microsecond)) {
		t.Errorf("Reauthenticate: got %v", s.AuthenticatedAt)
	}
	end := n.clock.Now().Add(time.Hour)
	must("SetExpiry", sessions.SetExpiry(ctx, s, &end))
	n.clock.Advance(2 * time.Hour)
	refused("expired", s)
	end = n.clock.Now().Add(time.Hour)
	must("SetExpiry", sessions.SetExpiry(ctx, s, &end))
	found(s)
	if _, err := sessions.Authenticate(ctx, string(before.Token)); !errors.Is(err, gormsessions.ErrReused) {
		t.Errorf("a token that was rotated away: got %v, want ErrReused", err)
	}
	refused("reused", s)

	// The limit counts what was created just now.
	eve := user("eve")
	devices := []*conformance.UserSession{sign(eve), sign(eve), sign(eve)}
	if how.config.MaxPerOwner == 2 {
		refused("over the limit", devices[0])
		devices = devices[1:]
	}
	for _, s := range devices {
		found(s)
	}
	if ended, err := sessions.Revoke(ctx, "test", gormsessions.ForUser(&eve)); err != nil || ended != int64(len(devices)) {
		t.Errorf("Revoke: got %d, %v; want %d", ended, err, len(devices))
	}
	n.clock.Advance(time.Minute)
	if pruned, err := sessions.Prune(ctx); err != nil || pruned < 4 {
		t.Errorf("Prune: got %d, %v; want the revoked ones", pruned, err)
	}
	if _, err := sessions.Get(ctx, gormsessions.WithID(old.ID)); err != gormsessions.ErrNoSession {
		t.Errorf("Get, pruned: got %v, want ErrNoSession", err)
	}

	// In a transaction, and in none with what the replica would say.
	err = db.Transaction(func(tx *gorm.DB) error {
		s := &conformance.UserSession{}
		s.OwnerID = eve.ID
		if err := sessions.With(tx).Create(ctx, s); err != nil {
			return err
		}
		_, err := sessions.With(tx).Authenticate(ctx, string(s.Token), gormsessions.WithOwner)
		return err
	})
	if !how.sources { // the application's own transaction begins where it was opened
		must("Transaction", err)
	}
	// What writes asks the primary, also where it was told to read from the replica.
	s = sign(eve)
	if ended, err := asked().Revoke(ctx, "test", gormsessions.WithID(s.ID)); err != nil || ended != 1 {
		t.Errorf("Revoke with dbresolver.Read: got %d, %v; want 1", ended, err)
	}
	refused("revoked with dbresolver.Read", s)
}
