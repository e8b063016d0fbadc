package main

import (
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/google/uuid"
)

// throttle slows down who fails again and again: after some free tries, each one
// makes the next wait, twice as long as the one before.
//
// It counts by account and by address. By account it slows down who guesses from
// many addresses, and lets a stranger who does not stop hold up the owner's next
// sign-in; to lock the account would be worse. Who is signed in is counted by the
// session, which no stranger has, and so is not held up. It keeps its counts in
// memory: several nodes would keep them in the database.
type throttle struct {
	now func() time.Time

	mu     sync.Mutex
	counts map[limit]*count
}

// limit is what is counted, and how many failures of it are free.
type limit struct {
	kind, value string
	free        int
}

type count struct {
	failures int
	last     time.Time
	until    time.Time // no try before
}

const (
	firstWait   = time.Second
	longestWait = time.Minute
	forgetAfter = 15 * time.Minute
	maxCounts   = 10_000
)

func newThrottle(now func() time.Time) *throttle {
	return &throttle{now: now, counts: make(map[limit]*count)}
}

func byAccount(email string) limit { return limit{"account", email, 5} }

func bySession(id uuid.UUID) limit { return limit{"session", id.String(), 5} }

// byAddress counts an IPv6 network as one: whoever has an address has 2⁶⁴.
func byAddress(r *http.Request) limit {
	address := addressOf(r)
	if ip, err := netip.ParseAddr(address); err == nil && ip.Is6() {
		if network, err := ip.Prefix(64); err == nil {
			address = network.String()
		}
	}
	return limit{"address", address, 20}
}

// begin says how long to wait before this try. If it is 0 the try is counted as a
// failure, until succeed says otherwise: of many at once none goes uncounted.
func (t *throttle) begin(limits ...limit) (wait time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	for _, l := range limits {
		if c := t.counts[l]; c != nil {
			wait = max(wait, c.until.Sub(now))
		}
	}
	if wait > 0 {
		return wait
	}
	for _, l := range limits {
		c := t.counts[l]
		if c == nil || now.Sub(c.last) > forgetAfter {
			t.makeRoom(now)
			c = &count{}
			t.counts[l] = c
		}
		c.failures++
		c.last = now
		if over := c.failures - l.free; over >= 0 {
			c.until = now.Add(min(firstWait<<min(over, 10), longestWait))
		}
	}
	return 0
}

// succeed takes back what begin counted. Earlier failures of an account or a session
// are forgotten, an address's are not: one's own account is no way round.
func (t *throttle) succeed(limits ...limit) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, l := range limits {
		switch c := t.counts[l]; {
		case c == nil:
		case l.kind != "address" || c.failures <= 1:
			delete(t.counts, l)
		default:
			c.failures--
			c.until = time.Time{}
		}
	}
}

// makeRoom keeps the memory bounded: when it is full, a tenth goes. What slows
// somebody down stays while there is anything else, or made-up accounts would push
// it out.
func (t *throttle) makeRoom(now time.Time) {
	if len(t.counts) < maxCounts {
		return
	}
	for l, c := range t.counts {
		if now.Sub(c.last) > forgetAfter {
			delete(t.counts, l)
		}
	}
	for _, all := range []bool{false, true} {
		for l, c := range t.counts {
			if len(t.counts) <= maxCounts*9/10 {
				return
			}
			if all || c.failures < l.free {
				delete(t.counts, l)
			}
		}
	}
}

// addressOf is the client's, as the connection has it. What a header says of it
// is the client's own word, unless a proxy of yours has set it.
func addressOf(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}
