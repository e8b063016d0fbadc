package sessioncache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/gormsessions/gormsessions"
	"gorm.io/gorm"
)

// Bus tells the nodes of each other's changes. Package sessioncache/pgnotify has
// one for PostgreSQL. Write your own for Redis, NATS or the like; the repository's
// tests have one for Redis to start from. The methods are called from goroutines
// of the cache's own, one for Listen and one for Publish.
type Bus interface {
	// Publish tells all nodes of rows that have changed; to tell this one as well does
	// no harm. It returns when ctx ends. After an error it is called again with the
	// same tags, among others, until it returns nil.
	Publish(ctx context.Context, tags []gormsessions.CacheTag) error

	// Listen passes on to the Listener what is published, until ctx ends or something
	// fails. When it returns, nothing that it started is left running. It is called
	// again after a pause: of 50 ms at first, then of twice as long each time, up to
	// 5 seconds. (Each pause is shortened at random, to no less than half.)
	Listen(ctx context.Context, to Listener) error
}

// DatabaseBus is a [Bus] that the database itself tells of changes, so that it
// hears each of them, whoever made it. Publish is never called.
type DatabaseBus interface {
	Bus

	// Open, Migrate and Drop are those of [gormsessions.Cache].
	Open(db *gorm.DB, tables gormsessions.CacheTables) error
	Migrate(tx *gorm.DB, tables gormsessions.CacheTables) error
	Drop(tx *gorm.DB, tables gormsessions.CacheTables) error
}

// Listener is what a [Bus] tells.
type Listener interface {
	// Heard says that rows have changed. In doubt, say [gormsessions.EveryTag].
	Heard(tags ...gormsessions.CacheTag)

	// Alive says that everything published since the first call of Alive, and until
	// sent, has been heard: a message that the bus sent to itself at that time has come
	// back, behind everything else. Take sent from time.Now before the message is sent.
	// Subscribe before the first call, with which the cache starts, empty. Each call
	// lets it serve for a lease, counted from sent.
	Alive(sent time.Time)

	// Heartbeat is how often Alive is wanted: four times in [Config.Lease].
	Heartbeat() time.Duration
}

const (
	minPause = 50 * time.Millisecond
	maxPause = 5 * time.Second
)

// pause waits for a random time between half of d and d, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d/2 + rand.N(d/2))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// listen keeps a Listen of the bus going.
func (c *Cache) listen(ctx context.Context) {
	wait := minPause
	log := failures{log: c.log}
	for ctx.Err() == nil {
		l := &listening{cache: c, recovered: log.recovered}
		err := c.bus.Listen(ctx, l)
		if l.end() {
			wait = minPause
		}
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			err = errors.New("the bus ended")
		}
		log.failed("sessioncache: not listening: the cache is bypassed", err)
		pause(ctx, wait)
		wait = min(2*wait, maxPause)
	}
}

// listening is one call of Bus.Listen.
type listening struct {
	cache     *Cache
	recovered func(string)

	mu    sync.Mutex
	alive bool
	over  bool
}

func (l *listening) Heard(tags ...gormsessions.CacheTag) { l.cache.mark(tags) }

func (l *listening) Heartbeat() time.Duration { return l.cache.lease / 4 }

func (l *listening) Alive(sent time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		return
	}
	if !l.alive {
		// What was read before may have missed a change.
		l.alive = true
		l.cache.mark([]gormsessions.CacheTag{gormsessions.EveryTag})
		l.recovered("sessioncache: listening: the cache serves")
	}
	now := l.cache.now()
	until := min(int64(sent.Sub(l.cache.start)), now) + int64(l.cache.lease)
	if until > l.cache.until.Load() {
		l.cache.until.Store(until)
	}
}

// end takes the lease away, and reports whether there was one.
func (l *listening) end() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = true
	l.cache.until.Store(0)
	return l.alive
}

// failures logs the first of each row of failures, those that differ from the one
// before by more than numbers (as those of ports), and one a minute; and their end.
type failures struct {
	log  *slog.Logger
	mu   sync.Mutex
	last string
	at   time.Time
}

func (f *failures) failed(message string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	text := strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' {
			return -1
		}
		return r
	}, err.Error())
	if text == f.last && time.Since(f.at) < time.Minute {
		return
	}
	f.last, f.at = text, time.Now()
	f.log.Warn(message, "error", err)
}

func (f *failures) recovered(message string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.last != "" {
		f.log.Info(message)
	}
	f.last = ""
}

// publisher gives a bus what has changed on this node, again where that fails.
type publisher struct {
	bus     Bus
	timeout time.Duration
	log     failures
	wake    chan struct{}

	mu      sync.Mutex
	next    *batch // nil: nothing to tell
	failing bool   // nobody waits then
}

// batch is what is told at once.
type batch struct {
	tags map[gormsessions.CacheTag]struct{}
	done chan struct{} // closed once the bus has taken it, or not
}

// maxBatch tags are told one by one; of more the bus is told EveryTag.
const maxBatch = 1000

func newPublisher(bus Bus, timeout time.Duration, log *slog.Logger) *publisher {
	return &publisher{bus: bus, timeout: timeout, log: failures{log: log}, wake: make(chan struct{}, 1)}
}

func (b *batch) add(tag gormsessions.CacheTag) {
	if _, every := b.tags[gormsessions.EveryTag]; every {
		return
	}
	if tag == gormsessions.EveryTag || len(b.tags) >= maxBatch {
		clear(b.tags)
		tag = gormsessions.EveryTag
	}
	b.tags[tag] = struct{}{}
}

// publish queues the tags, and waits for the bus to take them unless it failed
// the last time.
func (p *publisher) publish(tags []gormsessions.CacheTag) {
	p.mu.Lock()
	if p.next == nil {
		p.next = &batch{tags: map[gormsessions.CacheTag]struct{}{}, done: make(chan struct{})}
	}
	b, failing := p.next, p.failing
	for _, tag := range tags {
		b.add(tag)
	}
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default: // it is awake
	}
	if failing {
		return
	}
	timer := time.NewTimer(p.timeout)
	defer timer.Stop()
	select {
	case <-b.done:
	case <-timer.C:
	}
}

func (p *publisher) take() *batch {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.next
	p.next = nil
	return b
}

// again puts back what the bus has not taken.
func (p *publisher) again(b *batch) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.next == nil {
		p.next = &batch{tags: map[gormsessions.CacheTag]struct{}{}, done: make(chan struct{})}
	}
	for tag := range b.tags {
		p.next.add(tag)
	}
}

// run publishes until ctx ends, and then, once, what is left.
func (p *publisher) run(ctx context.Context) {
	wait := minPause
	for ctx.Err() == nil {
		select {
		case <-p.wake:
		case <-ctx.Done():
		}
		for b := p.take(); b != nil; b = p.take() {
			err := p.tell(b)
			if err == nil {
				wait = minPause
				continue
			}
			if ctx.Err() != nil {
				return
			}
			p.again(b)
			pause(ctx, wait)
			wait = min(2*wait, maxPause)
		}
	}
}

// tell gives the bus a batch. It takes as long as the timeout also when the cache
// is being closed.
func (p *publisher) tell(b *batch) error {
	tags := make([]gormsessions.CacheTag, 0, len(b.tags))
	for tag := range b.tags {
		tags = append(tags, tag)
	}
	ctx, cancel := context.WithTimeout(context.Background(), p.timeout)
	defer cancel()
	err := p.bus.Publish(ctx, tags)
	if err != nil {
		err = fmt.Errorf("publish: %w", err)
		p.log.failed("sessioncache: the other nodes are not told of changes", err)
	} else {
		p.log.recovered("sessioncache: the other nodes are told of changes again")
	}
	p.mu.Lock()
	p.failing = err != nil
	p.mu.Unlock()
	close(b.done)
	return err
}
