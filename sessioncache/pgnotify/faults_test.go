package pgnotify_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/gormsessions/gormsessions"
	"github.com/gormsessions/gormsessions/sessioncache"
	"github.com/gormsessions/gormsessions/sessioncache/pgnotify"
	"github.com/jackc/pgx/v5"
)

// proxy is a network that breaks.
type proxy struct {
	listener net.Listener
	server   string
	running  sync.WaitGroup

	mu    sync.Mutex
	state string
	moved chan struct{} // closed when the state is another
	conns map[net.Conn]bool
}

const (
	forwarding = "forwarding"
	swallowing = "swallowing" // connections stay, nothing passes
	refusing   = "refusing"   // connections end
)

func newProxy(t testing.TB, dsn string) (*proxy, pgnotify.Config) {
	t.Helper()
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: l, server: fmt.Sprintf("%s:%d", config.Host, config.Port), state: forwarding, moved: make(chan struct{}), conns: map[net.Conn]bool{}}
	p.running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			p.running.Go(func() { p.serve(conn) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		p.set(refusing)
		p.running.Wait()
	})
	port := l.Addr().(*net.TCPAddr).Port
	return p, pgnotify.Config{BeforeConnect: func(_ context.Context, c *pgx.ConnConfig) error {
		c.Host, c.Port, c.Fallbacks = "127.0.0.1", uint16(port), nil
		return nil
	}}
}

func (p *proxy) set(state string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state = state
	close(p.moved)
	p.moved = make(chan struct{})
	if state == refusing {
		for c := range p.conns {
			_ = c.Close()
		}
	}
}

// add keeps a connection, unless there shall be none.
func (p *proxy) add(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state == refusing {
		_ = c.Close()
		return false
	}
	p.conns[c] = true
	return true
}

// pass waits until something may pass.
func (p *proxy) pass() bool {
	for {
		p.mu.Lock()
		state, moved := p.state, p.moved
		p.mu.Unlock()
		switch state {
		case forwarding:
			return true
		case refusing:
			return false
		}
		<-moved
	}
}

func (p *proxy) serve(client net.Conn) {
	if !p.add(client) {
		return
	}
	defer func() { _ = client.Close() }()
	if !p.pass() {
		return
	}
	server, err := net.Dial("tcp", p.server)
	if err != nil || !p.add(server) {
		return
	}
	defer func() { _ = server.Close() }()
	var both sync.WaitGroup
	for _, d := range [][2]net.Conn{{client, server}, {server, client}} {
		both.Go(func() {
			defer func() { _, _ = d[0].Close(), d[1].Close() }()
			buffer := make([]byte, 32<<10)
			for {
				n, err := d[0].Read(buffer)
				if err != nil || !p.pass() {
					return
				}
				if _, err := d[1].Write(buffer[:n]); err != nil && err != io.EOF {
					return
				}
			}
		})
	}
	both.Wait()
}

// TestCut: a node whose listening connection breaks serves nothing once the lease
// is over, whatever broke it, and nothing of before when it works again.
func TestCut(t *testing.T) {
	for _, fault := range []string{"terminated", swallowing, refusing} {
		t.Run(fault, func(t *testing.T) {
			s := newSchema(t)
			s.migrate()
			proxy, config := newProxy(t, s.dsn())
			n := s.node(config, 200*time.Millisecond)
			n.serving()
			session, still := s.create(), s.create()
			n.put(session)
			n.put(still)
			if fault == "terminated" {
				proxyBackends(s)
				proxy.set(refusing) // else it is back at once
			} else {
				proxy.set(fault)
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
			proxy.set(forwarding)
			n.serving()
			if n.has(session) {
				t.Error("what changed meanwhile is served")
			}
			if fault != swallowing && n.has(still) {
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
	proxy, config := newProxy(t, s.dsn())
	proxy.set(refusing)
	n := s.node(config, 0)
	until(t, "it says so", func() bool { return n.log.String() != "" })
	session := s.create()
	n.Put(key(session), session, n.Clock(), "s")
	if n.has(session) {
		t.Error("served though nothing is heard")
	}
	proxy.set(forwarding)
	n.serving()
}

// TestCloseWhileSwallowed: closing takes no longer for a network that is gone.
func TestCloseWhileSwallowed(t *testing.T) {
	s := newSchema(t)
	s.migrate()
	proxy, config := newProxy(t, s.dsn())
	n := s.node(config, 0)
	n.serving()
	proxy.set(swallowing)
	n.bypassed()
	start := time.Now()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	t.Logf("closed in %v", time.Since(start))
	if time.Since(start) > 4*time.Second { // less than the connection's own timeouts
		t.Errorf("it took %v", time.Since(start))
	}
}

// TestNeverOlderThanTheLease breaks the network at random while rows change: what
// a node serves was never overwritten longer than a lease ago.
func TestNeverOlderThanTheLease(t *testing.T) {
	const lease, rows = 150 * time.Millisecond, 8
	s := newSchema(t)
	s.migrate()
	s.exec("CREATE TABLE versions (n int PRIMARY KEY, version bigint NOT NULL)")
	s.exec("INSERT INTO versions SELECT i, 0 FROM generate_series(0, ?) i", rows-1)
	watched := gormsessions.CacheTables{Sessions: "user_sessions", SessionKey: "id", Owners: "versions", OwnerKey: "n"}
	if err := pgnotify.New(pgnotify.Config{}).Migrate(s.db, watched); err != nil {
		t.Fatal(err)
	}
	proxy, config := newProxy(t, s.dsn())
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
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Second)
	defer cancel()
	var running sync.WaitGroup
	running.Go(func() { // the network
		for i := 0; ctx.Err() == nil; i++ {
			proxy.set([]string{forwarding, swallowing, forwarding, refusing}[i%4])
			select {
			case <-time.After(time.Duration(100+rand.N(400)) * time.Millisecond):
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
	hits, stale, oldest := 0, 0, time.Duration(0)
	for ctx.Err() == nil {
		n := rand.N(rows)
		key := gormsessions.CacheKey{byte(n)}
		tag := gormsessions.CacheTag(fmt.Sprint("o", n))
		start := time.Now()
		if v := c.Get(key); v != nil {
			hits++
			mu.Lock()
			if list := committed[n]; v.(int) < len(list) { // there is a later one
				age := start.Sub(list[v.(int)])
				oldest = max(oldest, age)
				if age > lease {
					stale++
				}
			}
			mu.Unlock()
			continue
		}
		read := c.Clock()
		c.Put(key, s.scan("SELECT version FROM versions WHERE n = ?", n), read, tag)
	}
	running.Wait()
	t.Logf("%d hits; the oldest had been overwritten %v before; %+v", hits, oldest, c.Stats())
	if stale != 0 {
		t.Errorf("%d hits had been overwritten longer than %v before", stale, lease)
	}
	if hits == 0 || c.Stats().Bypassed == 0 {
		t.Error("the test shows nothing")
	}
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
