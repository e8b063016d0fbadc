package gormsessions

import (
	"context"
	"crypto"
	"fmt"
	"math"
	"slices"
	"time"
)

// Never, as a duration, is "at no time": as IdleTimeout, no expiry by idleness;
// as AbsoluteTimeout, no absolute one; as TouchInterval, no write on reads; as
// Retention, nothing is pruned.
const Never time.Duration = math.MaxInt64

const (
	defaultIdleTimeout   = 7 * 24 * time.Hour
	defaultTouchInterval = time.Hour
	defaultRotationGrace = 30 * time.Second
	defaultTokenBytes    = 32
	minTokenBytes        = 16 // 128 bits
	maxPrefix            = 32
)

// LimitPolicy says what becomes of a session above Config.MaxPerOwner.
type LimitPolicy int

const (
	// EvictOldest makes room: the owner's sessions that were used least recently
	// are revoked, with the reason "limit".
	EvictOldest LimitPolicy = iota
	// Reject refuses the new session with [ErrTooManySessions].
	Reject
)

// Config is how a kind of session behaves. Its zero value is a good default.
// Negative and contradictory values, and durations of less than a microsecond, are
// errors when the plugin is registered.
type Config struct {
	// IdleTimeout is the sliding life of a session: each use moves its expiry to
	// so long from now. Default: 7 days. Never: it does not expire by idleness.
	IdleTimeout time.Duration

	// AbsoluteTimeout is the life counted from creation, however much the session
	// is used. An IdleTimeout that is set and longer is an error. Default (0,
	// Never): none.
	AbsoluteTimeout time.Duration

	// TouchInterval is how often, at most, a session that is used is written:
	// to extend it and note its last use. It is never taken for more than half
	// of a session's own IdleTimeout. Default: 1 hour. Never: reads never
	// write, so that only Extend extends.
	TouchInterval time.Duration

	// TokenBytes is how many random bytes a token carries. Tokens made before it
	// was changed are found only with AcceptForeign. Default: 32. Fewer than 16 is
	// an error, and so many that tokens are longer than 256 bytes.
	TokenBytes int

	// Prefix makes tokens read Prefix_…, so that secret scanners and support
	// can tell them: up to 32 letters, digits and underscores. Tokens made before
	// it was changed are found only with AcceptForeign. Default: none.
	Prefix string

	// Hashers make the digests that are stored in place of tokens. The first
	// makes those of new sessions. A session found by one of the others stays
	// valid, and Authenticate gives it the first one's digest (unless
	// TouchInterval is Never). One query looks for the digests of all. Default:
	// Hash(crypto.SHA256).
	Hashers []Hasher

	// AcceptForeign also looks up tokens that are not of this plugin's format:
	// for sessions imported from another system, or made with another Prefix or
	// TokenBytes. Default: false, such a token costs no query.
	AcceptForeign bool

	// MaxPerOwner is how many active sessions an owner has at most, whichever way
	// they are created, and also when many are created at once: creates for one
	// owner wait for each other. OnLimit says what becomes of one more. The model
	// needs an owner: [Session], or (not on MySQL) an OwnerID beside [Base], whose
	// zero value is nobody and has no limit. A session that is extended at the very
	// moment it expires may be one too many. Default (0): no limit.
	//
	// A transaction that the create begins, GORM's own too, is at READ COMMITTED.
	// Inside a transaction of yours at another level, MySQL locks all that it
	// counts, and PostgreSQL refuses a create at REPEATABLE READ, which does not
	// see what others have added. Two transactions that create for several owners
	// in different orders, as batches of CreateInBatches may, can wait for each
	// other: the database then ends one with a deadlock error, to be tried again.
	MaxPerOwner int

	// OnLimit says what becomes of a session above MaxPerOwner. Default:
	// EvictOldest. Reject without a MaxPerOwner is an error.
	OnLimit LimitPolicy

	// RotationGrace is how long a token still works after Rotate has replaced it,
	// for the requests that a client had under way. Afterwards its use is taken
	// for theft, and ends the session. Default: 30 seconds. time.Microsecond:
	// practically none. Never is an error.
	RotationGrace time.Duration

	// Retention is how long an ended session is kept before Prune deletes it.
	// Default (0): not at all. Never: Prune deletes nothing.
	Retention time.Duration

	// Cache keeps what Authenticate and Lookup find, so that a session that was
	// found before costs no query: see package sessioncache. Such a session passes
	// no callbacks of queries and no AfterFind: leave the cache out where one of
	// them refuses by the context. Default: none.
	Cache Cache

	// OnEvent is told of what happens to sessions after it is committed. It runs in
	// the goroutine of the call, which waits for it and holds no lock or connection
	// meanwhile; it may run in several at once. A panic in it is logged by GORM's
	// logger and goes no further. [LogEvents] is one. Default: none.
	//
	// Inside a transaction of the caller's, or that of a CreateInBatches, it is told
	// at once, though that may yet be rolled back: GORM does not tell when it
	// commits. What is written to [Event.DB] there shares its fate.
	OnEvent func(context.Context, Event)

	// SkipMigrate leaves the sessions' table, and that of the replaced tokens, to
	// the application's own migrations. Do not forget the second: while it is
	// missing, a token without an active session gives an error of the database in
	// place of ErrNoSession. Default: false, registering the plugin migrates both.
	SkipMigrate bool
}

// validate reports the first field that is wrong, by name.
func (c Config) validate() error {
	bad := func(field, format string, args ...any) error {
		return fmt.Errorf("gormsessions: Config.%s: %s", field, fmt.Sprintf(format, args...))
	}
	for _, d := range []struct {
		field string
		value time.Duration
	}{
		{"IdleTimeout", c.IdleTimeout},
		{"AbsoluteTimeout", c.AbsoluteTimeout},
		{"TouchInterval", c.TouchInterval},
		{"RotationGrace", c.RotationGrace},
		{"Retention", c.Retention},
	} {
		if d.value < 0 {
			return bad(d.field, "%v is negative: use gormsessions.Never for no limit", d.value)
		}
		if d.value > 0 && d.value < time.Microsecond {
			return bad(d.field, "%v is less than the microsecond that databases keep", d.value)
		}
	}
	if c.AbsoluteTimeout > 0 && c.IdleTimeout != Never && c.IdleTimeout > c.AbsoluteTimeout {
		return bad("IdleTimeout", "%v is longer than AbsoluteTimeout, %v", c.IdleTimeout, c.AbsoluteTimeout)
	}
	if c.RotationGrace == Never {
		return bad("RotationGrace", "with Never each token that was rotated away would work as long as its session")
	}
	if c.MaxPerOwner < 0 {
		return bad("MaxPerOwner", "%d is negative: 0 is no limit", c.MaxPerOwner)
	}
	if c.OnLimit != EvictOldest && c.OnLimit != Reject {
		return bad("OnLimit", "%d is neither EvictOldest nor Reject", c.OnLimit)
	}
	if c.OnLimit == Reject && c.MaxPerOwner == 0 {
		return bad("OnLimit", "there is no limit without MaxPerOwner")
	}
	if c.TokenBytes != 0 && c.TokenBytes < minTokenBytes {
		return bad("TokenBytes", "%d is fewer than %d (128 bits): tokens could be guessed", c.TokenBytes, minTokenBytes)
	}
	if len(c.Prefix) > maxPrefix {
		return bad("Prefix", "%d bytes are more than %d", len(c.Prefix), maxPrefix)
	}
	for _, r := range c.Prefix {
		if (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && r != '_' {
			return bad("Prefix", "%q holds %q: only letters, digits and underscores are allowed", c.Prefix, r)
		}
	}
	format := c.tokenFormat()
	if c.TokenBytes > maxToken || format.length() > maxToken {
		return bad("TokenBytes", "%d makes tokens of more than the %d bytes that are accepted", c.TokenBytes, maxToken)
	}
	sample := string(format.newToken())
	for i, h := range c.Hashers {
		if err := checkHasher(h, sample); err != nil {
			return bad(fmt.Sprintf("Hashers[%d]", i), "%v", err)
		}
	}
	return nil
}

func (c Config) idleTimeout() time.Duration {
	if c.IdleTimeout == 0 {
		return defaultIdleTimeout
	}
	return c.IdleTimeout
}

func (c Config) touchInterval() time.Duration {
	if c.TouchInterval == 0 {
		return defaultTouchInterval
	}
	return c.TouchInterval
}

func (c Config) rotationGrace() time.Duration {
	if c.RotationGrace == 0 {
		return defaultRotationGrace
	}
	return c.RotationGrace
}

func (c Config) hashers() []Hasher {
	if len(c.Hashers) == 0 {
		return []Hasher{Hash(crypto.SHA256)}
	}
	return slices.Clone(c.Hashers)
}

func (c Config) tokenFormat() tokenFormat {
	n := c.TokenBytes
	if n == 0 {
		n = defaultTokenBytes
	}
	return newTokenFormat(c.Prefix, n)
}
