package sessioncache

import "time"

// Lease is how long a proof holds.
func (c *Cache) Lease() time.Duration { return c.lease }
