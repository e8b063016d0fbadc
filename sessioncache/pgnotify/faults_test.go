package pgnotify_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/gormsessions/gormsessions"
	"github.com/gormsessions/gormsessions/internal/brokennet"
	"github.com/gormsessions/gormsessions/sessioncache"
	"github.com/gormsessions/gormsessions/sessioncache/pgnotify"
	"github.com/jackc/pgx/v5"
)

// through leads a node's listening connection through a network that breaks.
func through(t testing.TB, dsn string) (*brokennet.Proxy, pgnotify.Config) {
	t.Helper()
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	p := brokennet.New(t, net.JoinHostPort(config.Host, strconv.Itoa(int(config.Port))))
	return p, pgnotify.Config{BeforeConnect: func(_ context.Context, c *pgx.ConnConfig) error {
		c.Host, c.Port, c.Fallbacks = "127.0.0.1", p.Port(), nil
		return nil
	}}
}

// TestCut: a node whose listening connection breaks serves nothing once the lease
// is over, whatever broke it, and nothing of before when it works again.
func TestCut(t *testing.T) {
	for _, fault := range []string{"terminated", brokennet.Swallowing, brokennet.Refusing} {
		t.Run(fault, func(t *testing.T) {
			s := newSchema(t)
			s.migrate()
			proxy, config := through(t, s.dsn())
			n := s.node(config, 200*time.Millisecond)
			n.serving()
			session, still := s.create(), s.create()
			n.put(session)
			n.put(still)
			if fault == "terminated" {
				proxyBackends(s)
				proxy.Set(brokennet.Refusing) // else it is back at once
			} else {
				proxy.Set(fault)
			}
			cut := time.Now()
			s.exec("DELETE FROM user_sessions WHERE id = ?", session.ID)
			<-time.After(time.Until(cut.Add(200 * time.Millisecond)))
			for range 1000 {
				if n.has(session) {
					t.Fatal("served after the lease")
				}
				if n.Stats().Serving {
					t.Fatal("serving after the lease")
				}
			}
			proxy.Set(brokennet.Forwarding)
			n.serving()
			if n.has(session) {
				t.Error("what changed meanwhile is served")
			}
			if fault != brokennet.Swallowing && n.has(still) {
				t.Error("a new connection does not start empty")
			}
			n.put(still)
			s.exec("DELETE FROM user_sessions WHERE id = ?", still.ID)
			n.gone(still)
		})
	}
}

// proxyBackends ends all other connections that listen for this schema's node.
func proxyBackends(s *schema) {
	s.Helper()
	channel, err := pgnotify.Channel(s.db, tables)
	if err != nil {
		s.Fatal(err)
	}
	until(s, "the listening connection is found", func() bool {
		return s.scan("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND (query LIKE '%' || ? || '%' AND query LIKE '%' || ? || '%')",
			"gormsessions_", channel) > 0
	})
}

// TestDatabaseDownAtTheStart: the application starts, and the cache serves when it
// can.
func TestDatabaseDownAtTheStart(t *testing.T) {
	s := newSchema(t)
	s.migrate()
	proxy, config := through(t, s.dsn())
	proxy.Set(brokennet.Refusing)
	n := s.node(config, 0)
	until(t, "it says so", func() bool { return n.log.String() != "" })
	session := s.create()
	n.Put(key(session), session, n.Clock(), "s")
	if n.has(session) {
		t.Error("served though nothing is heard")
	}
	proxy.Set(brokennet.Forwarding)
	n.serving()
}

// TestCloseWhileSwallowed: closing takes no longer for a network that is gone.
func TestCloseWhileSwallowed(t *testing.T) {
	s := newSchema(t)
	s.migrate()
	proxy, config := through(t, s.dsn())
	n := s.node(config, 0)
	n.serving()
	proxy.Set(brokennet.Swallowing)
	n.bypassed()
	start := time.Now()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	t.Logf("closed in %v", time.Since(start))
}

// TestNeverOlderThanTheLease breaks the network at random while rows change: what
// a node serves was never overwritten longer than a lease ago.
func TestNeverOlderThanTheLease(t *testing.T) {
	const lease = 150 * time.Millisecond
	old, hits, bypassed := oldHits(t, lease, lease)
	if old != 0 {
		t.Errorf("%d of %d hits had been overwritten longer than %v before", old, hits, lease)
	}
	if hits == 0 || bypassed == 0 {
		t.Error("the test shows nothing")
	}
}

// TestNeverOlderThanTheLeaseControl: a node that trusts its network for longer
// fails the same test.
func TestNeverOlderThanTheLeaseControl(t *testing.T) {
	if old, hits, _ := oldHits(t, 10*time.Second, 150*time.Millisecond); old == 0 {
		t.Errorf("none of %d hits was old: the test shows nothing", hits)
	}
}

// oldHits counts what a node of that lease served though it had been overwritten
// for longer than allowed.
func oldHits(t *testing.T, lease, allowed time.Duration) (old, hits int, bypassed uint64) {
	const rows = 8
	s := newSchema(t)
	s.exec("CREATE TABLE versions (n int PRIMARY KEY, version bigint NOT NULL)")
	s.exec("INSERT INTO versions SELECT i, 0 FROM generate_series(0, ?) i", rows-1)
	watched := gormsessions.CacheTables{Sessions: "user_sessions", SessionKey: "id", Owners: "versions", OwnerKey: "n"}
	if err := pgnotify.New(pgnotify.Config{}).Migrate(s.db, watched); err != nil {
		t.Fatal(err)
	}
	proxy, config := through(t, s.dsn())
	c, err := sessioncache.New(sessioncache.Config{Bus: pgnotify.New(config), Lease: lease, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Open(s.db, watched); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()

	var mu sync.Mutex
	var committed [rows][]time.Time // when each version was
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	var running sync.WaitGroup
	running.Go(func() { // the network
		for i := 0; ctx.Err() == nil; i++ {
			proxy.Set([]string{brokennet.Forwarding, brokennet.Swallowing, brokennet.Forwarding, brokennet.Refusing}[i%4])
			select {
			case <-time.After(time.Duration(200+rand.N(400)) * time.Millisecond):
			case <-ctx.Done():
			}
		}
	})
	running.Go(func() { // another node
		for ctx.Err() == nil {
			n := rand.N(rows)
			if err := s.db.Exec("UPDATE versions SET version = version + 1 WHERE n = ?", n).Error; err != nil {
				t.Error(err)
			}
			mu.Lock()
			committed[n] = append(committed[n], time.Now())
			mu.Unlock()
			<-time.After(time.Duration(rand.N(20)) * time.Millisecond)
		}
	})
	oldest := time.Duration(0)
	for ctx.Err() == nil {
		n := rand.N(rows)
		key := gormsessions.CacheKey{byte(n)}
		start := time.Now()
		if v := c.Get(key); v != nil {
			hits++
			mu.Lock()
			if list := committed[n]; v.(int) < len(list) { // there is a later one
				age := start.Sub(list[v.(int)])
				oldest = max(oldest, age)
				if age > allowed {
					old++
				}
			}
			mu.Unlock()
			continue
		}
		read := c.Clock()
		version := s.scan("SELECT version FROM versions WHERE n = ?", n)
		c.Put(key, version, read, gormsessions.CacheTag(fmt.Sprint("o", n)))
	}
	running.Wait()
	t.Logf("%d hits; the oldest had been overwritten %v before; %+v", hits, oldest, c.Stats())
	return old, hits, c.Stats().Bypassed
}

// BenchmarkHeard measures how long after a change was committed another node still
// serves what was before.
func BenchmarkHeard(b *testing.B) {
	s := newSchema(b)
	s.migrate()
	here, there := s.node(pgnotify.Config{}, 0), s.node(pgnotify.Config{}, 0)
	here.serving()
	there.serving()
	session := s.create()
	var took []time.Duration
	for i := 0; b.Loop(); i++ {
		there.put(session)
		s.exec("UPDATE users SET name = ? WHERE id = ?", fmt.Sprint(i), session.OwnerID)
		start := time.Now()
		for there.has(session) {
			if time.Since(start) > 10*time.Second {
				b.Fatal("never heard")
			}
			<-time.After(50 * time.Microsecond)
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
	b.ReportMetric(float64(took[len(took)-1].Microseconds())/1000, "max-ms")
}
