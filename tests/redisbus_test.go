package tests

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/gormsessions/gormsessions"
	"github.com/gormsessions/gormsessions/internal/brokennet"
	"github.com/gormsessions/gormsessions/sessioncache"
	"github.com/redis/go-redis/v9"
)

// RedisBus is a sessioncache.Bus on Redis's publish and subscribe: copy it, or
// start from it. Messages may be lost on the way, which Config.TTL bounds; a
// connection that is lost is noticed.
type RedisBus struct {
	// Client needs ContextTimeoutEnabled, without which it takes its own time.
	Client  *redis.Client
	Channel string // one for each kind of session
}

// Publish sends the tags as one message.
func (b RedisBus) Publish(ctx context.Context, tags []gormsessions.CacheTag) error {
	message, err := json.Marshal(tags)
	if err != nil {
		return err
	}
	return b.Client.Publish(ctx, b.Channel, message).Err()
}

// Listen subscribes to the channel and to one of its own, for messages to itself:
// Redis delivers in the order of publication, so one that comes back proves that
// all before it have come.
func (b RedisBus) Listen(ctx context.Context, to sessioncache.Listener) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	self := b.Channel + ":" + rand.Text()
	sub := b.Client.Subscribe(ctx, b.Channel, self)
	defer context.AfterFunc(ctx, func() { _ = sub.Close() })() // Receive does not look at ctx
	defer func() { _ = sub.Close() }()
	var beats sync.WaitGroup
	defer beats.Wait()
	defer cancel(nil)
	sent := &sync.Map{}
	for subscribed := 0; ; {
		message, err := sub.ReceiveTimeout(ctx, max(20*to.Heartbeat(), 5*time.Second))
		if err != nil { // it would connect again by itself, and not say what was lost
			return errors.Join(context.Cause(ctx), err)
		}
		switch m := message.(type) {
		case *redis.Subscription:
			if subscribed++; subscribed == 2 {
				beats.Go(func() { cancel(b.beat(ctx, self, to.Heartbeat(), sent)) })
			}
		case *redis.Message:
			if m.Channel == self {
				if at, ok := sent.LoadAndDelete(m.Payload); ok {
					to.Alive(at.(time.Time))
				}
				continue
			}
			var tags []gormsessions.CacheTag
			if err := json.Unmarshal([]byte(m.Payload), &tags); err != nil {
				tags = []gormsessions.CacheTag{gormsessions.EveryTag}
			}
			to.Heard(tags...)
		}
	}
}

func (b RedisBus) beat(ctx context.Context, self string, every time.Duration, sent *sync.Map) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for i := 0; ; i++ {
		number := strconv.Itoa(i)
		sent.Store(number, time.Now())
		if err := b.send(ctx, self, number, 4*every); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (b RedisBus) send(ctx context.Context, channel, message string, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return b.Client.Publish(ctx, channel, message).Err()
}

// redisAt is the server that GORMSESSIONS_REDIS names, or skips the test.
func redisAt(t testing.TB) string {
	t.Helper()
	addr := os.Getenv("GORMSESSIONS_REDIS")
	if addr == "" {
		addr = "127.0.0.1:6379"
	}
	client := redis.NewClient(&redis.Options{Addr: addr, MaxRetries: -1})
	defer func() { _ = client.Close() }()
	if err := client.Ping(t.Context()).Err(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("Redis is not reachable: %v", err)
		}
		t.Skip("Redis is not reachable; start one with: docker run -p 6379:6379 redis")
	}
	return addr
}

func openBus(t testing.TB, bus sessioncache.Bus, config sessioncache.Config) *sessioncache.Cache {
	t.Helper()
	config.Bus, config.Logger = bus, slog.New(slog.DiscardHandler)
	c, err := sessioncache.New(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Open(nil, gormsessions.CacheTables{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func newRedis(addr string) *redis.Client {
	return redis.NewClient(&redis.Options{Addr: addr, ContextTimeoutEnabled: true})
}

func redisCache(t testing.TB, addr, channel string, config sessioncache.Config) *sessioncache.Cache {
	t.Helper()
	client := newRedis(addr)
	t.Cleanup(func() { _ = client.Close() })
	return openBus(t, RedisBus{client, channel}, config)
}

// await waits for something.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(30 * time.Second); !ok(); {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func serving(c *sessioncache.Cache) func() bool { return func() bool { return c.Stats().Serving } }

// TestRedisBus: a change on one node is seen by the other.
func TestRedisBus(t *testing.T) {
	addr := redisAt(t)
	channel := "gormsessions_" + rand.Text()
	config := sessioncache.Config{TTL: gormsessions.Never}
	a, b := redisCache(t, addr, channel, config), redisCache(t, addr, channel, config)
	apart := redisCache(t, addr, channel+"2", config)
	key := gormsessions.CacheKey{1}
	session := gormsessions.SessionTag(uuid.New())
	for _, c := range []*sessioncache.Cache{a, b, apart} {
		await(t, "serving", serving(c))
	}
	await(t, "kept", func() bool {
		apart.Put(key, "s", apart.Clock(), session, "o1\n2")
		return apart.Get(key) != nil
	})
	for name, change := range map[string]func(){
		"session": func() { a.Changed(session) },
		"owner":   func() { a.Changed("x", "o1\n2") },
		"every":   func() { a.Changed(gormsessions.EveryTag) },
		"pending": func() { a.Pending(session)() },
	} {
		await(t, "kept", func() bool { // a busy machine may miss a heartbeat
			b.Put(key, "s", b.Clock(), session, "o1\n2")
			return b.Get(key) != nil
		})
		change()
		await(t, name+" is heard", func() bool { return b.Get(key) == nil })
	}
	await(t, "serving", serving(apart))
	if apart.Get(key) == nil {
		t.Error("another channel is heard")
	}
}

// TestRedisBusCut: a node that Redis does not reach serves nothing once the lease
// is over, and nothing of before when it is reached again.
func TestRedisBusCut(t *testing.T) {
	addr := redisAt(t)
	const lease = 200 * time.Millisecond
	for _, fault := range []string{brokennet.Refusing, brokennet.Swallowing} {
		t.Run(fault, func(t *testing.T) {
			proxy := brokennet.New(t, addr)
			channel := "gormsessions_" + rand.Text()
			config := sessioncache.Config{TTL: gormsessions.Never, Lease: lease}
			a, b := redisCache(t, addr, channel, config), redisCache(t, proxy.Addr(), channel, config)
			await(t, "serving", serving(a))
			await(t, "serving", serving(b))
			changed, still := gormsessions.CacheKey{1}, gormsessions.CacheKey{2}
			b.Put(changed, "s", b.Clock(), "s1")
			b.Put(still, "s", b.Clock(), "s2")
			proxy.Set(fault)
			cut := time.Now()
			a.Changed("s1")
			<-time.After(time.Until(cut.Add(lease)))
			for range 1000 {
				if b.Get(changed) != nil || b.Stats().Serving {
					t.Fatal("served after the lease")
				}
			}
			proxy.Set(brokennet.Forwarding)
			await(t, "serving again", serving(b))
			if b.Get(changed) != nil {
				t.Error("what changed meanwhile is served")
			}
			if fault == brokennet.Refusing && b.Get(still) != nil {
				t.Error("a new connection does not start empty")
			}
			b.Put(still, "s", b.Clock(), "s2")
			a.Changed("s2")
			await(t, "the change is heard", func() bool { return b.Get(still) == nil })
		})
	}
}

// TestRedisBusDown: the start does not fail, nor does a change take long.
func TestRedisBusDown(t *testing.T) {
	c := redisCache(t, "127.0.0.1:1", "gormsessions_"+rand.Text(), sessioncache.Config{})
	c.Put(gormsessions.CacheKey{1}, "s", c.Clock(), "s1")
	for i := range 100 {
		c.Changed(gormsessions.CacheTag(fmt.Sprint("s", i)))
	}
	if c.Get(gormsessions.CacheKey{1}) != nil {
		t.Error("served without a bus")
	}
}
