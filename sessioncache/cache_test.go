package sessioncache_test

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/gormsessions/gormsessions"
	"github.com/gormsessions/gormsessions/sessioncache"
)

func newCache(t testing.TB, config sessioncache.Config) *sessioncache.Cache {
	t.Helper()
	c, err := sessioncache.New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func keyOf(n uint64) gormsessions.CacheKey {
	return sha256.Sum256(binary.BigEndian.AppendUint64(nil, n))
}

func ownerTag(n uint64) gormsessions.CacheTag { return gormsessions.CacheTag(fmt.Sprint("o", n)) }

func want[T comparable](t testing.TB, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func TestConfigErrorsNameTheField(t *testing.T) {
	for field, config := range map[string]sessioncache.Config{
		"MaxEntries":     {MaxEntries: -1},
		"TTL":            {TTL: time.Microsecond},
		"Lease":          {Lease: time.Millisecond, Bus: &memoryBus{}},
		"PublishTimeout": {PublishTimeout: time.Second},
	} {
		_, err := sessioncache.New(config)
		if err == nil || !strings.HasPrefix(err.Error(), "sessioncache: Config."+field+": ") {
			t.Errorf("%+v: got %v, want an error that names %s", config, err, field)
		}
	}
	for _, config := range []sessioncache.Config{
		{TTL: -1}, {Lease: -1, Bus: &memoryBus{}}, {Lease: time.Second}, {Lease: gormsessions.Never, Bus: &memoryBus{}},
		{PublishTimeout: -1, Bus: &memoryBus{}},
	} {
		if _, err := sessioncache.New(config); err == nil {
			t.Errorf("%+v is not an error", config)
		}
	}
}

func TestChangedEndsWhatWasReadBefore(t *testing.T) {
	session, owner := gormsessions.SessionTag(uuid.New()), ownerTag(7)
	for _, c := range []struct {
		name    string
		changed []gormsessions.CacheTag
	}{
		{"session", []gormsessions.CacheTag{session}},
		{"owner", []gormsessions.CacheTag{owner}},
		{"one of many", []gormsessions.CacheTag{ownerTag(1), ownerTag(2), session, ownerTag(3)}},
		{"every", []gormsessions.CacheTag{gormsessions.EveryTag}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cache, key := newCache(t, sessioncache.Config{}), keyOf(1)
			early := cache.Clock()
			cache.Put(key, "a", early, session, owner)
			want(t, "put", cache.Get(key), any("a"))
			late := cache.Clock() // a reader that will store late
			cache.Changed(c.changed...)
			want(t, "changed", cache.Get(key), nil)
			cache.Put(key, "late", late, session, owner)
			want(t, "stored late", cache.Get(key), nil)
			cache.Put(key, "b", cache.Clock(), session, owner)
			want(t, "read again", cache.Get(key), any("b"))
			cache.Put(key, "late", late, session, owner)
			want(t, "stored later", cache.Get(key), any("b"))
		})
	}
}

func TestChangedLeavesTheRest(t *testing.T) {
	cache := newCache(t, sessioncache.Config{})
	for n := range uint64(1000) {
		cache.Put(keyOf(n), n, cache.Clock(), ownerTag(n))
	}
	for n := range uint64(10) {
		cache.Changed(ownerTag(n))
	}
	left := 0
	for n := range uint64(1000) {
		if cache.Get(keyOf(n)) != nil {
			left++
		}
	}
	if left < 900 || left > 990 { // tags may share a slot
		t.Errorf("of 1000 entries, 10 of them changed, %d are left", left)
	}
}

func TestPending(t *testing.T) {
	session, owner := gormsessions.SessionTag(uuid.New()), ownerTag(7)
	for _, pending := range []gormsessions.CacheTag{session, owner, gormsessions.EveryTag} {
		cache, key := newCache(t, sessioncache.Config{}), keyOf(1)
		cache.Put(key, "a", cache.Clock(), session, owner)
		ended := cache.Pending(pending)
		other := cache.Pending(pending)
		want(t, "pending", cache.Get(key), nil)
		during := cache.Clock()
		cache.Put(key, "b", during, session, owner)
		want(t, "put meanwhile", cache.Get(key), nil)
		ended()
		ended()
		want(t, "one of two ended", cache.Get(key), nil)
		other()
		want(t, "both ended", cache.Get(key), nil)
		cache.Put(key, "b", during, session, owner)
		want(t, "read before the end", cache.Get(key), nil)
		cache.Put(key, "c", cache.Clock(), session, owner)
		want(t, "read after the end", cache.Get(key), any("c"))
	}
}

func TestWhatIsNotKept(t *testing.T) {
	cache, key := newCache(t, sessioncache.Config{}), keyOf(1)
	cache.Put(key, "a", cache.Clock(), gormsessions.EveryTag)
	want(t, "every tag", cache.Get(key), nil)
	cache.Put(key, "a", cache.Clock(), "a", "b", "c", "d", "e")
	want(t, "five tags", cache.Get(key), nil)
	cache.Put(key, "a", cache.Clock(), "a", "b", "c", "d")
	want(t, "four tags", cache.Get(key), any("a"))
	cache.Changed("d")
	want(t, "the fourth changed", cache.Get(key), nil)
}

func TestTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			set, want time.Duration
		}{{0, 5 * time.Second}, {time.Minute, time.Minute}, {10 * time.Hour, 10 * time.Hour}} {
			cache, key := newCache(t, sessioncache.Config{TTL: c.set}), keyOf(1)
			time.Sleep(12345 * time.Microsecond)
			read := cache.Clock()
			time.Sleep(c.want / 10) // a slow query counts
			cache.Put(key, "a", read, "s")
			time.Sleep(c.want - c.want/10 - 2*time.Millisecond)
			want(t, "before", cache.Get(key), any("a"))
			time.Sleep(2 * time.Millisecond)
			want(t, "after", cache.Get(key), nil)
		}
		cache, key := newCache(t, sessioncache.Config{TTL: gormsessions.Never}), keyOf(1)
		cache.Put(key, "a", cache.Clock(), "s")
		time.Sleep(100 * 365 * 24 * time.Hour)
		want(t, "never", cache.Get(key), any("a"))
	})
}

func TestBounded(t *testing.T) {
	cache := newCache(t, sessioncache.Config{MaxEntries: 100})
	for n := range uint64(10_000) {
		cache.Put(keyOf(n), n, cache.Clock(), ownerTag(n))
	}
	for deadline, tick := time.After(10*time.Second), time.NewTicker(time.Millisecond); cache.Stats().Entries > 100; {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%d entries, of 100", cache.Stats().Entries)
		}
	}
}

func TestStatsAndClose(t *testing.T) {
	cache, key := newCache(t, sessioncache.Config{}), keyOf(1)
	cache.Get(key)
	cache.Put(key, "a", cache.Clock(), "s")
	for range 1000 {
		cache.Get(key)
	}
	want(t, "stats", cache.Stats(), sessioncache.Stats{Hits: 1000, Misses: 1, Entries: 1, Serving: true})
	for range 2 {
		if err := cache.Close(); err != nil {
			t.Fatal(err)
		}
	}
	want(t, "closed", cache.Get(key), nil)
	cache.Put(key, "a", cache.Clock(), "s")
	cache.Changed("s")
	cache.Pending("s")()
	want(t, "stats", cache.Stats(), sessioncache.Stats{Hits: 1000, Misses: 1, Bypassed: 1})
	if err := cache.Open(nil, gormsessions.CacheTables{}); err == nil {
		t.Error("a closed cache opens")
	}
	twice := newCache(t, sessioncache.Config{})
	if err := twice.Open(nil, gormsessions.CacheTables{}); err != nil {
		t.Fatal(err)
	}
	if err := twice.Open(nil, gormsessions.CacheTables{}); err == nil {
		t.Error("a cache opens twice")
	}
}

func TestGetAllocatesNothing(t *testing.T) {
	cache, key := newCache(t, sessioncache.Config{}), keyOf(1)
	cache.Put(key, &entryLike{}, cache.Clock(), "s", "o")
	var got any
	want(t, "allocations", testing.AllocsPerRun(1000, func() { got = cache.Get(key) }), 0)
	if got == nil {
		t.Error("not found")
	}
}

type entryLike struct{ _ [256]byte }

// fresh is what the plugin relies on.
type freshCache interface {
	Clock() uint64
	Get(gormsessions.CacheKey) any
	Put(gormsessions.CacheKey, any, uint64, ...gormsessions.CacheTag)
	Changed(...gormsessions.CacheTag)
	Pending(...gormsessions.CacheTag) func()
}

// staleReads has writers change rows while readers look them up, and counts the
// values that were older than what the cache had been told.
func staleReads(cache freshCache, rounds int) (stale, hits int64) {
	const rows, writers, readers = 32, 4, 8
	type row struct {
		committed atomic.Uint64 // the row
		promised  atomic.Uint64 // no older version may be read any more
		mu        sync.Mutex    // the database's lock of the row
	}
	var table [rows]row
	var left, nStale, nHits atomic.Int64
	left.Store(int64(rounds))
	var writing, reading sync.WaitGroup
	for range writers {
		writing.Go(func() {
			for left.Add(-1) >= 0 {
				n := rand.N(uint64(rows))
				r := &table[n]
				tag := ownerTag(n)
				r.mu.Lock()
				switch rand.N(4) {
				case 0: // a transaction of the caller's: what it commits counts at once
					ended := cache.Pending("other", tag)
					r.promised.Store(r.committed.Add(1))
					runtime.Gosched()
					ended()
				case 1: // one that is rolled back
					cache.Pending(tag)()
				case 2:
					v := r.committed.Add(1)
					cache.Changed("other", tag)
					r.promised.Store(v)
				default:
					v := r.committed.Add(1)
					if rand.N(100) == 0 {
						tag = gormsessions.EveryTag
					}
					cache.Changed(tag)
					r.promised.Store(v)
				}
				r.mu.Unlock()
				if rand.N(8) == 0 {
					runtime.Gosched()
				}
			}
		})
	}
	var done atomic.Bool
	for range readers {
		reading.Go(func() {
			for !done.Load() {
				n := rand.N(uint64(rows))
				r, key := &table[n], keyOf(n)
				promised := r.promised.Load()
				if v := cache.Get(key); v != nil {
					nHits.Add(1)
					if v.(uint64) < promised {
						nStale.Add(1)
					}
					continue
				}
				read := cache.Clock()
				v := r.committed.Load()
				for range rand.N(3) {
					runtime.Gosched() // the row is on its way
				}
				cache.Put(key, v, read, gormsessions.CacheTag("s"+fmt.Sprint(n)), ownerTag(n))
			}
		})
	}
	writing.Wait()
	done.Store(true)
	reading.Wait()
	for n := range table { // and nothing is left behind
		if v := cache.Get(keyOf(uint64(n))); v != nil && v.(uint64) < table[n].promised.Load() {
			nStale.Add(1)
		}
	}
	return nStale.Load(), nHits.Load()
}

// TestNeverStale: once Changed has returned, or Pending, nothing older is read.
func TestNeverStale(t *testing.T) {
	cache := newCache(t, sessioncache.Config{})
	stale, hits := staleReads(cache, 100_000)
	t.Logf("%d stale of %d hits, %+v", stale, hits, cache.Stats())
	if stale != 0 {
		t.Errorf("%d of %d hits were stale", stale, hits)
	}
	if hits == 0 {
		t.Error("nothing was ever found")
	}
}

// TestNeverStaleControl: caches that look right fail the same test.
func TestNeverStaleControl(t *testing.T) {
	for name, cache := range map[string]freshCache{
		"deletes what changed": &deletingCache{},
		"pending is nothing":   impatientCache{newCache(t, sessioncache.Config{})},
		"stamps after reading": hindsightCache{newCache(t, sessioncache.Config{})},
	} {
		if stale, hits := staleReads(cache, 100_000); stale == 0 {
			t.Errorf("%s: none of %d hits was stale: the test shows nothing", name, hits)
		} else {
			t.Logf("%s: %d of %d hits were stale", name, stale, hits)
		}
	}
}

// deletingCache is the usual cache: a change deletes.
type deletingCache struct{ values, keys sync.Map }

func (c *deletingCache) Clock() uint64 { return 0 }
func (c *deletingCache) Get(key gormsessions.CacheKey) any {
	v, _ := c.values.Load(key)
	return v
}
func (c *deletingCache) Put(key gormsessions.CacheKey, value any, _ uint64, tags ...gormsessions.CacheTag) {
	c.keys.Store(tags[1], key)
	c.values.Store(key, value)
}
func (c *deletingCache) Changed(tags ...gormsessions.CacheTag) {
	for _, tag := range tags {
		if tag == gormsessions.EveryTag {
			c.values.Clear()
		} else if key, ok := c.keys.Load(tag); ok {
			c.values.Delete(key)
		}
	}
}
func (c *deletingCache) Pending(tags ...gormsessions.CacheTag) func() {
	return func() { c.Changed(tags...) }
}

type impatientCache struct{ *sessioncache.Cache }

func (c impatientCache) Pending(tags ...gormsessions.CacheTag) func() {
	return func() { c.Changed(tags...) }
}

type hindsightCache struct{ *sessioncache.Cache }

func (c hindsightCache) Put(key gormsessions.CacheKey, value any, _ uint64, tags ...gormsessions.CacheTag) {
	c.Cache.Put(key, value, c.Clock(), tags...)
}

// BenchmarkGet looks up one of a million sessions by the digest of its token.
func BenchmarkGet(b *testing.B) {
	const n = 1_000_000
	cache := newCache(b, sessioncache.Config{MaxEntries: 2 * n, TTL: gormsessions.Never})
	tokens := make([][43]byte, n)
	for i := range tokens {
		copy(tokens[i][:], fmt.Sprintf("%043d", i))
		cache.Put(sha256.Sum256(tokens[i][:]), &entryLike{}, cache.Clock(), gormsessions.SessionTag(uuid.New()), ownerTag(uint64(i)))
	}
	get := func(b *testing.B, key gormsessions.CacheKey) {
		if cache.Get(key) == nil {
			b.Fatal("not found")
		}
	}
	keys := make([]gormsessions.CacheKey, n)
	for i := range keys {
		keys[i] = sha256.Sum256(tokens[i][:])
	}
	b.Run("get", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			get(b, keys[rand.N(n)])
		}
	})
	b.Run("sha256+get", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			get(b, sha256.Sum256(tokens[rand.N(n)][:]))
		}
	})
	b.Run("sha256", func(b *testing.B) {
		for b.Loop() {
			sum = sha256.Sum256(tokens[rand.N(n)][:])
		}
	})
	b.Run("sha256+get, parallel", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				get(b, sha256.Sum256(tokens[rand.N(n)][:]))
			}
		})
	})
	b.Run("sha256+get of one key, parallel", func(b *testing.B) {
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				get(b, sha256.Sum256(tokens[0][:]))
			}
		})
	})
}

var sum gormsessions.CacheKey

// BenchmarkMemory tells what an entry takes, without the session.
func BenchmarkMemory(b *testing.B) {
	for _, n := range []int{10_000, 100_000, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				before := heap()
				cache, err := sessioncache.New(sessioncache.Config{MaxEntries: n})
				if err != nil {
					b.Fatal(err)
				}
				empty := heap()
				value := &entryLike{}
				for i := range uint64(n) {
					cache.Put(keyOf(i), value, cache.Clock(), "s", "o")
				}
				full := heap()
				b.ReportMetric(float64(full-empty)/float64(cache.Stats().Entries), "B/entry")
				b.ReportMetric(float64(empty-before)/1e6, "MB/cache")
				runtime.KeepAlive(cache)
			}
		})
	}
}

func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
