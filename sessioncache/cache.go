// Package sessioncache keeps the sessions that Authenticate and Lookup have found
// in memory, bounded, so that a session that was found before costs no query:
//
//	cache, err := sessioncache.New(sessioncache.Config{Bus: pgnotify.New(pgnotify.Config{})})
//	sessions := gormsessions.New[UserSession](gormsessions.Config{Cache: cache})
//	err = db.Use(sessions)
//	defer cache.Close()
//
// What a node may still accept after a session was revoked, changed or deleted:
//
//   - On the same node: nothing. Once the call that changed it has returned, what
//     was there before is not returned any more, and a query that began earlier
//     cannot bring it back. (What a view, a function, a trigger or a cascade from a
//     third table writes, no statement names: it counts as another process's.)
//   - Between nodes on PostgreSQL, with package sessioncache/pgnotify: for as long as
//     a notification takes, some milliseconds, whoever changed it: another node or
//     psql. A node that no longer hears PostgreSQL stops serving from its cache within
//     [Config.Lease], 1 second, counted from its last proof that it does, and starts
//     empty when it hears it again: a broken network costs speed only.
//   - Between nodes with another [Bus]: the same for what the nodes themselves
//     change, while the bus loses nothing. What it loses, and what others write to
//     the tables, is seen after [Config.TTL], 5 seconds, at the latest.
//   - Between processes without a Bus: after Config.TTL, 5 seconds, at the latest.
//
// Expiry needs none of that: it is compared with the clock on each use.
//
// Sessions of owners whose key is a text with more than printable ASCII in it are not
// kept: a collation may take such a key for another spelling.
//
// An entry takes about 155 bytes beside the session itself (and its owner, where
// that is kept with it), and a cache 0.5 to 8 MB of its own, by [Config.MaxEntries].
package sessioncache

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"math"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gormsessions/gormsessions"
	"github.com/maypok86/otter/v2"
	"gorm.io/gorm"
)

const (
	defaultMaxEntries     = 100_000
	defaultTTL            = 5 * time.Second
	defaultDatabaseTTL    = time.Hour
	defaultLease          = time.Second
	minLease              = 20 * time.Millisecond
	maxLease              = time.Hour
	defaultPublishTimeout = 250 * time.Millisecond
)

// Config is how a cache behaves. Its zero value is a good default for one process.
type Config struct {
	// MaxEntries is how many sessions are kept; those that were used least make
	// room for others. Default: 100,000.
	MaxEntries int

	// TTL is how long an entry is served, counted from before its query began. It
	// limits how long an entry can be stale when another process has written to the
	// tables and no Bus tells of it. Default: 5 seconds; with a [DatabaseBus], which
	// hears every change, 1 hour. gormsessions.Never: entries stay until they are known
	// to have changed. It is for use with a DatabaseBus, or where only this process ever
	// writes, and no view, function, trigger or cascade from a third table does. Less
	// than a millisecond is an error.
	TTL time.Duration

	// Bus tells the nodes of each other's changes. Each cache needs one of its own.
	// While it is not proven to work, the cache is bypassed: every session is asked
	// for in the database. Default: none.
	Bus Bus

	// Lease is how long a proof that the Bus is heard is good for, counted from when
	// the proof was asked for. A node that the network cuts off, even if it notices
	// nothing, serves nothing from its cache after that. A proof is asked for four
	// times in a lease. Default: 1 second, and so a proof each 250 ms. Less than 20 ms
	// or more than an hour is an error, and so is a Lease without a Bus.
	Lease time.Duration

	// PublishTimeout is how long a change on this node waits at most for the Bus to
	// take it. Afterwards that goes on being tried without anybody waiting, and other
	// nodes may meanwhile serve what was before, up to TTL. With a DatabaseBus nothing
	// waits: the database tells it. Default: 250 ms. One without a Bus is an error.
	PublishTimeout time.Duration

	// Logger is told when the Bus fails and when it works again. Default:
	// slog.Default().
	Logger *slog.Logger
}

func (c Config) validate() error {
	bad := func(field, format string, args ...any) error {
		return fmt.Errorf("sessioncache: Config.%s: %s", field, fmt.Sprintf(format, args...))
	}
	switch {
	case c.MaxEntries < 0:
		return bad("MaxEntries", "%d is negative", c.MaxEntries)
	case c.TTL < 0:
		return bad("TTL", "%v is negative: use gormsessions.Never for no limit", c.TTL)
	case c.TTL > 0 && c.TTL < time.Millisecond:
		return bad("TTL", "%v is less than a millisecond", c.TTL)
	case c.Lease < 0 || c.Lease > 0 && c.Lease < minLease || c.Lease > maxLease:
		return bad("Lease", "%v is not between %v and %v", c.Lease, minLease, maxLease)
	case c.Lease > 0 && c.Bus == nil:
		return bad("Lease", "there is no Bus that could prove anything")
	case c.PublishTimeout < 0:
		return bad("PublishTimeout", "%v is negative", c.PublishTimeout)
	case c.PublishTimeout > 0 && c.Bus == nil:
		return bad("PublishTimeout", "there is no Bus to publish to")
	}
	return nil
}

func (c Config) maxEntries() int {
	if c.MaxEntries == 0 {
		return defaultMaxEntries
	}
	return c.MaxEntries
}

func (c Config) ttl() time.Duration {
	if c.TTL != 0 {
		return c.TTL
	}
	if _, ok := c.Bus.(DatabaseBus); ok {
		return defaultDatabaseTTL
	}
	return defaultTTL
}

func (c Config) lease() time.Duration {
	if c.Lease == 0 {
		return defaultLease
	}
	return c.Lease
}

func (c Config) publishTimeout() time.Duration {
	if c.PublishTimeout == 0 {
		return defaultPublishTimeout
	}
	return c.PublishTimeout
}

func (c Config) logger() *slog.Logger {
	if c.Logger == nil {
		return slog.Default()
	}
	return c.Logger
}

// Cache is a [gormsessions.Cache] in this process's memory. Make it with [New], one for
// each plugin. It is safe for concurrent use. Applications call Close and Stats; the
// other methods are for the plugin.
//
// Freshness is a matter of counting. The clock counts changes; each tag has a slot
// that holds what the clock said at its last change (tags that share a slot cost
// speed, nothing else); an entry holds what the clock said before its query began.
// It is served while none of its slots is later. A change advances the clock after
// it is committed and before it marks its slots, so that
//
//   - a reader that saw the clock advanced began its query after the commit and
//     has read what was committed;
//   - one that did not is older than the mark, whenever it stores.
//
// All of it relies on the total order of Go's atomic operations.
type Cache struct {
	ttl     int64
	lease   time.Duration
	patient time.Duration
	bus     Bus
	log     *slog.Logger

	start   time.Time
	seed    maphash.Seed
	entries *otter.Cache[gormsessions.CacheKey, *entry]
	slots   []mark
	mask    uint64
	stats   counters

	_ [64]byte // what each Get reads is away from what each change writes
	// floor is the mark of EveryTag.
	floor mark
	// until is when the cache stops serving, in nanoseconds since start.
	until atomic.Int64
	_     [64]byte
	clock atomic.Uint64
	_     [64]byte

	mu        sync.Mutex
	opened    bool
	closed    bool
	stop      context.CancelFunc
	running   sync.WaitGroup
	publisher atomic.Pointer[publisher]
}

var _ gormsessions.Cache = (*Cache)(nil)

// mark is the clock's value at the last change of what has this slot, and above it
// the number of transactions that may have changed it: while there is one, the
// mark is later than any clock.
type mark struct{ atomic.Uint64 }

const (
	clockBits  = 64 - stampBits
	clockMask  = 1<<clockBits - 1
	onePending = 1 << clockBits
)

// raise makes the mark at least n, and adds to what is pending.
func (m *mark) raise(n, pending uint64) {
	for {
		old := m.Load()
		if m.CompareAndSwap(old, old&^clockMask|max(old&clockMask, n)+pending) {
			return
		}
	}
}

const maxTags = 4

// entry is a value and what it hangs on. It never changes.
type entry struct {
	value any
	read  uint64 // what the clock said before the value was read
	born  int64  // when that was, in nanoseconds since start
	slots [maxTags]uint32
}

const (
	forever  = math.MaxInt64
	minSlots = 1 << 16 // 512 KB
	maxSlots = 1 << 20
)

// New makes a cache. A Config that is wrong is an error, which names the field.
func New(config Config) (*Cache, error) {
	if err := config.validate(); err != nil {
		return nil, err
	}
	entries, err := otter.New(&otter.Options[gormsessions.CacheKey, *entry]{MaximumSize: config.maxEntries()})
	if err != nil {
		return nil, fmt.Errorf("sessioncache: %w", err)
	}
	n := min(max(minSlots, 1<<bits.Len(uint(config.maxEntries()))), maxSlots)
	c := &Cache{
		ttl: int64(config.ttl()), lease: config.lease(), patient: config.publishTimeout(),
		bus: config.Bus, log: config.logger(),
		start: time.Now(), seed: maphash.MakeSeed(), entries: entries,
		slots: make([]mark, n), mask: uint64(n - 1),
	}
	if c.bus == nil {
		c.until.Store(forever)
	}
	return c, nil
}

// Migrate makes what a [DatabaseBus] needs in the database. For the plugin.
func (c *Cache) Migrate(tx *gorm.DB, tables gormsessions.CacheTables) error {
	if bus, ok := c.bus.(DatabaseBus); ok {
		return bus.Migrate(tx, tables)
	}
	return nil
}

// Drop removes what Migrate made. For the plugin.
func (c *Cache) Drop(tx *gorm.DB, tables gormsessions.CacheTables) error {
	if bus, ok := c.bus.(DatabaseBus); ok {
		return bus.Drop(tx, tables)
	}
	return nil
}

// Open starts to listen to the Bus, until [Cache.Close]. For the plugin. A Bus
// that is down is no error: the cache is bypassed until it works.
func (c *Cache) Open(db *gorm.DB, tables gormsessions.CacheTables) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return errors.New("sessioncache: open: the cache is closed")
	case c.opened:
		return errors.New("sessioncache: open: the cache belongs to another plugin: make one for each")
	}
	if bus, ok := c.bus.(DatabaseBus); ok {
		if err := bus.Open(db, tables); err != nil {
			return fmt.Errorf("sessioncache: open: %w", err)
		}
	}
	c.opened = true
	if c.bus == nil {
		return nil
	}
	ctx, stop := context.WithCancel(context.Background())
	c.stop = stop
	c.running.Go(func() { c.listen(ctx) })
	if _, ok := c.bus.(DatabaseBus); !ok {
		p := newPublisher(c.bus, c.patient, c.log)
		c.publisher.Store(p)
		c.running.Go(func() { p.run(ctx) })
	}
	return nil
}

// Close ends what Open started, and waits for it. The cache is bypassed from then
// on. It may be called again, and always returns nil.
func (c *Cache) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	if c.stop != nil {
		c.stop()
		c.running.Wait()
		c.publisher.Store(nil)
	}
	c.until.Store(0)
	c.entries.InvalidateAll()
	return nil
}

// A stamp is the clock's value, and below it the milliseconds since the start: an
// entry's age counts from its query, however long that took. (The milliseconds
// return to 0 after 4.6 hours; a query that takes as long makes an entry seem
// younger. The clock has room for 10¹² changes.)
const stampBits = 24

// Clock is the stamp of a value whose query has not begun.
func (c *Cache) Clock() uint64 {
	return c.clock.Load()<<stampBits | uint64(c.now()/1e6)&(1<<stampBits-1)
}

func (c *Cache) now() int64 { return int64(time.Since(c.start)) }

// Get returns what was put under the key, or nil. It allocates nothing.
func (c *Cache) Get(key gormsessions.CacheKey) any {
	// First the lease, then the slots: that it was proven means that what was
	// heard before has marked them.
	until := c.until.Load()
	now := c.now()
	if now >= until {
		c.stats.stripe().bypassed.Add(1)
		return nil
	}
	e, ok := c.entries.GetIfPresent(key)
	if !ok || !c.fresh(e, now) {
		c.stats.stripe().misses.Add(1)
		return nil
	}
	c.stats.stripe().hits.Add(1)
	return e.value
}

func (c *Cache) fresh(e *entry, now int64) bool {
	if now-e.born >= c.ttl || c.floor.Load() > e.read {
		return false
	}
	for _, i := range e.slots {
		if c.slots[i].Load() > e.read {
			return false
		}
	}
	return true
}

// Put keeps a value that was read after [Cache.Clock] said read. One that is
// stale already is not kept, nor one that hangs on more than four tags, or on
// [gormsessions.EveryTag].
//
// The query has to have seen all that was committed when it began: on the primary
// server, and outside of a transaction that keeps an older view.
func (c *Cache) Put(key gormsessions.CacheKey, value any, read uint64, tags ...gormsessions.CacheTag) {
	now := c.now()
	if len(tags) > maxTags || now >= c.until.Load() {
		return
	}
	ms := now / 1e6
	age := (uint64(ms) - read) & (1<<stampBits - 1)
	e := &entry{value: value, read: read >> stampBits, born: (ms - int64(age)) * 1e6}
	for i, tag := range tags {
		if tag == gormsessions.EveryTag {
			return
		}
		e.slots[i] = c.slotOf(tag)
	}
	for i := len(tags); i < maxTags && i > 0; i++ {
		e.slots[i] = e.slots[0]
	}
	if c.fresh(e, now) {
		c.entries.Set(key, e)
	}
}

func (c *Cache) slotOf(tag gormsessions.CacheTag) uint32 {
	return uint32(maphash.String(c.seed, string(tag)) & c.mask)
}

// Changed says that rows have changed, and that it is committed. With a [Bus] the
// other nodes are told, for which it waits at most [Config.PublishTimeout].
func (c *Cache) Changed(tags ...gormsessions.CacheTag) {
	c.mark(tags)
	if p := c.publisher.Load(); p != nil {
		p.publish(tags)
	}
}

// mark advances the clock, then the marks.
func (c *Cache) mark(tags []gormsessions.CacheTag) { c.raise(tags, c.clock.Add(1), 0) }

func (c *Cache) raise(tags []gormsessions.CacheTag, n, pending uint64) {
	for _, tag := range tags {
		if tag == gormsessions.EveryTag {
			c.floor.raise(n, pending)
		} else {
			c.slots[c.slotOf(tag)].raise(n, pending)
		}
	}
}

// Pending says that rows were changed in a transaction that may yet commit, until
// ended is called. Calling that again does nothing.
func (c *Cache) Pending(tags ...gormsessions.CacheTag) (ended func()) {
	tags = slices.Clone(tags)
	c.raise(tags, 0, onePending)
	var once sync.Once
	return func() {
		once.Do(func() {
			c.raise(tags, c.clock.Add(1), math.MaxUint64-onePending+1)
			if p := c.publisher.Load(); p != nil {
				p.publish(tags)
			}
		})
	}
}
