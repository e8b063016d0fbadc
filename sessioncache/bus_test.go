package sessioncache_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gormsessions/gormsessions"
	"github.com/gormsessions/gormsessions/sessioncache"
)

// memoryBus is a bus in memory, with faults.
type memoryBus struct {
	mu        sync.Mutex
	down      bool // it says so
	silent    bool // it does not
	hangs     bool // Publish does
	to        map[sessioncache.Listener]context.CancelCauseFunc
	listens   []time.Time // when Listen was called
	published [][]gormsessions.CacheTag
}

var errDown = errors.New("the bus is down")

func (m *memoryBus) Publish(ctx context.Context, tags []gormsessions.CacheTag) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.hangs {
		m.mu.Unlock()
		<-ctx.Done()
		m.mu.Lock()
		return ctx.Err()
	}
	if m.down {
		return errDown
	}
	slices.Sort(tags)
	m.published = append(m.published, tags)
	for to := range m.to {
		if !m.silent {
			to.Heard(tags...)
		}
	}
	return nil
}

func (m *memoryBus) Listen(ctx context.Context, to sessioncache.Listener) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	m.mu.Lock()
	m.listens = append(m.listens, time.Now())
	if m.down {
		m.mu.Unlock()
		return errDown
	}
	if m.to == nil {
		m.to = map[sessioncache.Listener]context.CancelCauseFunc{}
	}
	m.to[to] = cancel
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		delete(m.to, to)
		m.mu.Unlock()
	}()
	beat := time.NewTicker(to.Heartbeat())
	defer beat.Stop()
	for {
		m.mu.Lock()
		if !m.silent {
			to.Alive(time.Now())
		}
		m.mu.Unlock()
		select {
		case <-beat.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// set changes what is wrong with the bus; those that listen notice a bus that is
// down.
func (m *memoryBus) set(change func(*memoryBus)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change(m)
	if m.down {
		for _, cancel := range m.to {
			cancel(errDown)
		}
	}
}

func (m *memoryBus) told() string {
	synctest.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	return fmt.Sprint(m.published)
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func opened(t *testing.T, bus sessioncache.Bus, config sessioncache.Config) *sessioncache.Cache {
	t.Helper()
	config.Bus = bus
	if config.Logger == nil {
		config.Logger = quiet()
	}
	c := newCache(t, config)
	if err := c.Open(nil, gormsessions.CacheTables{}); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
	return c
}

func TestBusTellsOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := &memoryBus{}
		a, b := opened(t, bus, sessioncache.Config{}), opened(t, bus, sessioncache.Config{})
		key := keyOf(1)
		put := func() {
			for _, c := range []*sessioncache.Cache{a, b} {
				c.Put(key, "a", c.Clock(), "s", "o")
				want(t, "put", c.Get(key), any("a"))
			}
		}
		put()
		a.Changed("s")
		want(t, "told", b.Get(key), nil)
		put()
		ended := a.Pending("o")
		want(t, "pending on the other node", b.Get(key), any("a"))
		ended()
		want(t, "ended", b.Get(key), nil)
		put()
		a.Changed(gormsessions.EveryTag)
		want(t, "every", b.Get(key), nil)
	})
}

// TestBypassed: nothing is served while the bus is not proven to work, and nothing
// of before once it is again.
func TestBypassed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := &memoryBus{down: true}
		c, key := opened(t, bus, sessioncache.Config{TTL: gormsessions.Never}), keyOf(1)
		put := func() { c.Put(key, "a", c.Clock(), "s") }
		put()
		want(t, "down at the start", c.Get(key), nil)
		read := c.Clock()
		bus.set(func(m *memoryBus) { m.down = false })
		time.Sleep(time.Minute)
		c.Put(key, "a", read, "s")
		want(t, "read before", c.Get(key), nil)
		put()
		want(t, "up", c.Get(key), any("a"))

		bus.set(func(m *memoryBus) { m.down = true })
		synctest.Wait()
		want(t, "down", c.Get(key), nil)
		bus.set(func(m *memoryBus) { m.down = false })
		time.Sleep(time.Minute)
		want(t, "up again", c.Stats().Serving, true)
		want(t, "up again: what was before", c.Get(key), nil)
		put()
		want(t, "up again", c.Get(key), any("a"))
		want(t, "bypassed", c.Stats().Bypassed, 2)
		want(t, "misses", c.Stats().Misses, 2)
	})
}

// TestLease: a bus that falls silent is bypassed when the lease is over, counted
// from the last proof.
func TestLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, lease := range []time.Duration{0, 400 * time.Millisecond} {
			bus := &memoryBus{}
			c, key := opened(t, bus, sessioncache.Config{Lease: lease}), keyOf(1)
			lease = c.Lease()
			time.Sleep(lease / 4 * 10)
			synctest.Wait()
			c.Put(key, "a", c.Clock(), "s")
			bus.set(func(m *memoryBus) { m.silent = true })
			time.Sleep(lease - 1)
			want(t, "within the lease", c.Get(key), any("a"))
			time.Sleep(time.Nanosecond)
			want(t, "after the lease", c.Get(key), nil)
			bus.set(func(m *memoryBus) { m.silent = false })
			time.Sleep(lease / 4)
			synctest.Wait()
			want(t, "heard again", c.Get(key), any("a")) // nothing was lost: the bus says so
		}
		want(t, "default", newCache(t, sessioncache.Config{}).Lease(), time.Second)
	})
}

// TestOldListen: a Listen that has ended renews nothing.
func TestOldListen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var old sessioncache.Listener
		bus := listenFunc(func(ctx context.Context, to sessioncache.Listener) error {
			old = to
			to.Alive(time.Now().Add(time.Hour)) // no more than now
			return nil
		})
		c := opened(t, bus, sessioncache.Config{})
		old.Alive(time.Now())
		want(t, "serving", c.Stats().Serving, false)
	})
}

type listenFunc func(context.Context, sessioncache.Listener) error

func (f listenFunc) Listen(ctx context.Context, to sessioncache.Listener) error { return f(ctx, to) }
func (f listenFunc) Publish(context.Context, []gormsessions.CacheTag) error     { return nil }

func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		bus := &memoryBus{down: true}
		c := opened(t, bus, sessioncache.Config{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		time.Sleep(10 * time.Minute)
		bus.set(func(m *memoryBus) { m.down = false })
		time.Sleep(time.Minute)
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		var pauses []time.Duration
		for i := 1; i < len(bus.listens); i++ {
			pauses = append(pauses, bus.listens[i].Sub(bus.listens[i-1]))
		}
		if n := len(pauses); n < 120 || n > 250 {
			t.Errorf("%d attempts in 10 minutes", n)
		}
		distinct := map[time.Duration]bool{}
		for i, p := range pauses {
			d := min(50*time.Millisecond<<min(i, 20), 5*time.Second)
			if p < d/2 || p > d {
				t.Errorf("pause %d: %v, not between %v and %v", i, p, d/2, d)
			}
			distinct[p] = true
		}
		if len(distinct) < len(pauses)/2 {
			t.Error("nodes would all try at once")
		}
		if n := strings.Count(log.String(), "WARN"); n < 9 || n > 11 {
			t.Errorf("%d warnings in 10 minutes:\n%s", n, log.String())
		}
		want(t, "told that it works", strings.Count(log.String(), "INFO"), 1)
	})
}

// TestPublish: a bus that hangs or fails delays a change for PublishTimeout, once,
// and is given again what it missed.
func TestPublish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := &memoryBus{}
		c := opened(t, bus, sessioncache.Config{})
		took := func(do func()) time.Duration {
			start := time.Now()
			do()
			return time.Since(start)
		}
		want(t, "works", took(func() { c.Changed("a") }), 0)
		bus.set(func(m *memoryBus) { m.hangs = true })
		want(t, "hangs", took(func() { c.Changed("b") }), 250*time.Millisecond)
		synctest.Wait()
		want(t, "hung before", took(func() { c.Changed("c", "b") }), 0)
		bus.set(func(m *memoryBus) { m.hangs, m.down = false, true })
		time.Sleep(time.Minute)
		want(t, "down", took(func() { c.Pending("d")() }), 0)
		bus.set(func(m *memoryBus) { m.down = false })
		time.Sleep(time.Minute)
		want(t, "told", bus.told(), "[[a] [b c d]]")
		want(t, "works again", took(func() { c.Changed("e") }), 0)

		bus.set(func(m *memoryBus) { m.down, m.published = true, nil })
		for i := range 2000 {
			c.Changed(gormsessions.CacheTag(fmt.Sprint(i)))
		}
		bus.set(func(m *memoryBus) { m.down = false })
		time.Sleep(time.Minute)
		want(t, "too many", bus.told(), "[[*]]")

		bus.set(func(m *memoryBus) { m.down, m.published = true, nil })
		c.Changed("last")
		bus.set(func(m *memoryBus) { m.down = false })
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		want(t, "told at the end", bus.told(), "[[last]]")
		want(t, "closed", took(func() { c.Changed("f") }), 0)
	})
}

// TestCloseHangingBus: it takes no longer than PublishTimeout.
func TestCloseHangingBus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := &memoryBus{hangs: true}
		c := opened(t, bus, sessioncache.Config{})
		go c.Changed("a")
		synctest.Wait()
		start := time.Now()
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d > 500*time.Millisecond {
			t.Errorf("took %v", d)
		}
	})
}
