package sessioncache

import (
	"math/rand/v2"
	"sync/atomic"
)

// Stats is what a [Cache] has done since it was made.
type Stats struct {
	Hits     uint64 // found, and fresh
	Misses   uint64 // not found, or changed since, or older than the TTL
	Bypassed uint64 // not looked for: the Bus was not proven to work, or the cache is closed
	Entries  int    // kept now, those that have become stale among them
	Serving  bool   // false: bypassed now
}

// Stats counts without slowing Get down; counts of calls under way may be missing.
func (c *Cache) Stats() Stats {
	var s Stats
	for i := range c.stats {
		stripe := &c.stats[i]
		s.Hits += stripe.hits.Load()
		s.Misses += stripe.misses.Load()
		s.Bypassed += stripe.bypassed.Load()
	}
	s.Entries = c.entries.EstimatedSize()
	s.Serving = c.now() < c.until.Load()
	return s
}

// counters are spread over cache lines: one that all processors count in would
// cost more than the lookup.
type counters [64]stripe

type stripe struct {
	hits, misses, bypassed atomic.Uint64
	_                      [104]byte // two lines, which processors fetch together
}

func (c *counters) stripe() *stripe { return &c[rand.Uint32()%uint32(len(c))] }
