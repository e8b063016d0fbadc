package gormsessions

import (
	"crypto"
	"fmt"
	"math"
	"slices"
	"time"
)

// Never, as a duration, is "at no time": as IdleTimeout, no expiry by idleness;
// as AbsoluteTimeout, no absolute one; as TouchInterval, no write on reads.
const Never time.Duration = math.MaxInt64

const (
	defaultIdleTimeout   = 7 * 24 * time.Hour
	defaultTouchInterval = time.Hour
	defaultTokenBytes    = 32
	minTokenBytes        = 16 // 128 bits
	maxPrefix            = 32
)

// Config is how a kind of session behaves. Its zero value is a good default.
// Negative and contradictory values are errors when the plugin is registered.
type Config struct {
	// IdleTimeout is the sliding life of a session: each use pushes its expiry
	// so far. Default: 7 days. Never: it does not expire by idleness.
	IdleTimeout time.Duration

	// AbsoluteTimeout is the life counted from creation, however much the
	// session is used. Default (0, Never): none.
	AbsoluteTimeout time.Duration

	// TouchInterval is how often, at most, a session that is used is written:
	// to extend it and note its last use. It is never taken for more than half
	// of a session's own IdleTimeout. Default: 1 hour. Never: reads never
	// write, so that only Extend extends.
	TouchInterval time.Duration

	// TokenBytes is how many random bytes a token carries. Default: 32.
	// Fewer than 16 is an error. Tokens made before it was changed are found
	// only with AcceptForeign.
	TokenBytes int

	// Prefix makes tokens read Prefix_…, so that secret scanners and support
	// can tell them: up to 32 letters, digits and underscores. Default: none.
	// Tokens made before it was changed are found only with AcceptForeign.
	Prefix string

	// Hashers make the digests that are stored in place of tokens: the first
	// those of new sessions; a session found by one of the others stays valid,
	// and Authenticate gives it the first one's digest (unless TouchInterval is
	// Never). All are asked for in one query. Default: Hash(crypto.SHA256).
	Hashers []Hasher

	// AcceptForeign also looks up tokens that are not of this plugin's format:
	// for sessions imported from another system, or made with another Prefix or
	// TokenBytes. Default: false, such a token costs no query.
	AcceptForeign bool

	// SkipMigrate leaves the table to the application's own migrations.
	// Default: false, registering the plugin migrates it.
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
