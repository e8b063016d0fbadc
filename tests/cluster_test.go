package tests

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gormsessions/gormsessions"
	"github.com/gormsessions/gormsessions/internal/brokennet"
	"github.com/gormsessions/gormsessions/sessioncache"
	"github.com/gormsessions/gormsessions/sessioncache/pgnotify"
	"github.com/gormsessions/gormsessions/tests/internal/pgserver"
	"gorm.io/driver/postgres"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
)

// Member is an owner that may be suspended.
type Member struct {
	ID        uint
	Name      string
	DeletedAt gorm.DeletedAt
}

// MemberSession is a session of a Member's.
type MemberSession struct {
	gormsessions.Session[Member, uint]
}

// clusterNode is a node with a cache that listens to PostgreSQL.
type clusterNode struct {
	*testing.T
	db       *gorm.DB
	sessions *gormsessions.Plugin[MemberSession]
	cache    *sessioncache.Cache
}

func newClusterNode(t *testing.T, dsn, listen string) clusterNode {
	t.Helper()
	n := clusterNode{T: t}
	var err error
	n.cache, err = sessioncache.New(sessioncache.Config{
		Bus:    pgnotify.New(pgnotify.Config{DSN: listen}),
		Lease:  200 * time.Millisecond,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.cache.Close() })
	if n.db, err = gorm.Open(postgres.Open(dsn), &gorm.Config{Logger: logger.Discard}); err != nil {
		t.Fatal(err)
	}
	pool, err := n.db.DB()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pool.Close() })
	n.sessions = gormsessions.New[MemberSession](gormsessions.Config{Cache: n.cache})
	if err := n.db.Use(n.sessions); err != nil {
		t.Fatal(err)
	}
	return n
}

func (n clusterNode) must(err error) {
	n.Helper()
	if err != nil {
		n.Fatal(err)
	}
}

func (n clusterNode) serving(want bool) {
	n.Helper()
	n.must(pgserver.Until(10*time.Second, func() error {
		if n.cache.Stats().Serving != want {
			return fmt.Errorf("serving: %v", !want)
		}
		return nil
	}))
}

// sign creates a session with an owner of its own.
func (n clusterNode) sign() *MemberSession {
	n.Helper()
	m := Member{Name: "ada"}
	n.must(n.db.Create(&m).Error)
	s := &MemberSession{}
	s.OwnerID = m.ID
	n.must(n.sessions.Create(n.Context(), s))
	return s
}

func (n clusterNode) ask(s *MemberSession) error {
	_, err := n.sessions.Authenticate(n.Context(), string(s.Token), gormsessions.WithOwner)
	return err
}

// warm makes the node serve the session from its cache.
func (n clusterNode) warm(s *MemberSession) {
	n.Helper()
	n.must(pgserver.Until(10*time.Second, func() error {
		before := n.cache.Stats().Hits
		n.must(n.ask(s))
		if n.cache.Stats().Hits == before {
			return errors.New("not from the cache")
		}
		return nil
	}))
}

func (n clusterNode) revoke(s *MemberSession) {
	n.Helper()
	_, err := n.sessions.Revoke(n.Context(), "", gormsessions.WithID(s.ID))
	n.must(err)
}

// unseen waits until the node refuses the session, and says how long that took.
func (n clusterNode) unseen(s *MemberSession) time.Duration {
	n.Helper()
	start := time.Now()
	for n.ask(s) == nil {
		if time.Since(start) > 10*time.Second {
			n.Fatal("the session is still accepted")
		}
	}
	return time.Since(start)
}

// What one node or anybody else changes, the others notice; and one that is cut off
// asks the database.
func TestCacheOfSeveralNodes(t *testing.T) {
	server := pgserver.New(t)
	proxy := brokennet.New(t, strings.Join([]string{"127.0.0.1", portOf(server.DSN())}, ":"))
	throughProxy := strings.Replace(server.DSN(), "port="+portOf(server.DSN()), fmt.Sprint("port=", proxy.Port()), 1)
	a := newClusterNode(t, server.DSN(), "")
	b := newClusterNode(t, server.DSN(), throughProxy)
	a.serving(true)
	b.serving(true)

	t.Run("revoked elsewhere", func(t *testing.T) {
		var took []time.Duration
		for range 300 {
			s := a.sign()
			b.warm(s)
			a.revoke(s)
			took = append(took, b.unseen(s))
		}
		slices.Sort(took)
		t.Logf("from the return of Revoke until the other node refuses: p50 %v, p99 %v, longest %v", took[150], took[297], took[299])
	})

	t.Run("written by SQL", func(t *testing.T) {
		psql, err := gorm.Open(postgres.Open(server.DSN()), &gorm.Config{Logger: logger.Discard})
		a.must(err)
		pool, err := psql.DB()
		a.must(err)
		defer pool.Close()
		for _, sql := range []string{
			"UPDATE member_sessions SET revoked_at = now() WHERE id = ?",
			"DELETE FROM member_sessions WHERE id = ?",
			"UPDATE member_sessions SET expires_at = now() WHERE id = ?",
			"UPDATE members SET deleted_at = now() WHERE id = (SELECT owner_id FROM member_sessions WHERE id = ?)",
			"DELETE FROM members WHERE id = (SELECT owner_id FROM member_sessions WHERE id = ?)",
			"TRUNCATE member_sessions CASCADE; SELECT ?::uuid",
		} {
			s := a.sign()
			b.warm(s)
			a.must(psql.Session(&gorm.Session{}).Exec(strings.ReplaceAll(sql, "?", "'"+s.ID.String()+"'")).Error)
			b.unseen(s)
		}
	})

	// broken runs while b hears nothing: what a revokes then, b refuses at once.
	broken := func(t *testing.T, cut, mend func()) {
		var held, fresh []*MemberSession
		for range 20 {
			held, fresh = append(held, a.sign()), append(fresh, a.sign())
			b.warm(held[len(held)-1])
			b.warm(fresh[len(fresh)-1])
		}
		cut()
		b.serving(false)
		stale := 0
		for _, s := range held {
			a.revoke(s)
			if b.ask(s) == nil {
				stale++
			}
		}
		if stale != 0 {
			t.Errorf("%d of %d revoked sessions were accepted", stale, len(held))
		}
		for _, s := range fresh {
			b.must(b.ask(s)) // by the database
		}
		mend()
		b.serving(true)
		for _, s := range held {
			if b.ask(s) == nil {
				t.Error("a revoked session was accepted once the listener was back")
			}
		}
		for _, s := range fresh {
			b.warm(s)
			a.revoke(s)
			b.unseen(s)
		}
	}
	t.Run("connection cut", func(t *testing.T) {
		broken(t, func() { proxy.Set(brokennet.Refusing) }, func() { proxy.Set(brokennet.Forwarding) })
	})
	t.Run("partition", func(t *testing.T) {
		broken(t, func() { proxy.Set(brokennet.Swallowing) }, func() { proxy.Set(brokennet.Forwarding) })
	})
	t.Run("server stopped", func(t *testing.T) {
		s := a.sign()
		b.warm(s)
		server.Stop()
		b.serving(false)
		if err := b.ask(s); err == nil || errors.Is(err, gormsessions.ErrNoSession) {
			t.Errorf("without a server: %v", err)
		}
		server.Start()
		b.must(pgserver.Until(10*time.Second, func() error { return b.ask(s) }))
		a.serving(true)
		b.serving(true)
		b.warm(s)
		a.revoke(s)
		b.unseen(s)
	})
}

func portOf(dsn string) string {
	_, rest, _ := strings.Cut(dsn, "port=")
	port, _, _ := strings.Cut(rest, " ")
	return port
}
