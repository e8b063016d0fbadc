// Package sessiontest helps to test applications that use gormsessions: requests
// of people who are signed in, and a clock that is moved instead of waited for.
//
//	clock := sessiontest.NewClock(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
//	db, err := gorm.Open(dialector, &gorm.Config{NowFunc: clock.Now})
//
//	req := httptest.NewRequest("GET", "/account", nil)
//	sessiontest.SignIn(t, sessions, req, &s) // a real session
//	app.ServeHTTP(rec, req)
//
//	clock.Advance(8 * 24 * time.Hour) // it has expired
package sessiontest

import (
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/gormsessions/gormsessions"
	"github.com/gormsessions/gormsessions/sessionhttp"
)

// SignIn creates the session and puts its token on the request: into the cookie
// sessionhttp.DefaultCookieName, or where carry puts it, [Cookie], [Bearer] or [Header].
// A session that was created before is not created again; it must be that very value,
// which has the Token. What fails ends the test.
func SignIn[T any](t testing.TB, sessions *gormsessions.Plugin[T], req *http.Request, session *T, carry ...Carrier) {
	t.Helper()
	base := any(session).(gormsessions.Model).SessionBase() // T of a Plugin is one
	if len(base.TokenDigest) == 0 {
		if err := sessions.Create(req.Context(), session); err != nil {
			t.Fatalf("sessiontest: sign in: %v", err)
		}
	}
	if base.Token == "" {
		t.Fatal("sessiontest: sign in: the session has no Token: only the value that was created has it")
	}
	if len(carry) == 0 {
		carry = []Carrier{Cookie(sessionhttp.DefaultCookieName)}
	}
	for _, c := range carry {
		c(req, string(base.Token))
	}
}

// Carrier puts a token on a request: Bearer is one, and Cookie and Header make one.
type Carrier func(req *http.Request, token string)

// Cookie puts the token into the cookie of that name, in place of one that is there.
func Cookie(name string) Carrier {
	return func(req *http.Request, token string) {
		others := req.Cookies()
		req.Header.Del("Cookie")
		for _, c := range others {
			if c.Name != name {
				req.AddCookie(c)
			}
		}
		req.AddCookie(&http.Cookie{Name: name, Value: token})
	}
}

// Bearer puts the token into the Authorization header.
func Bearer(req *http.Request, token string) { req.Header.Set("Authorization", "Bearer "+token) }

// Header puts the token into the header of that name.
func Header(name string) Carrier {
	return func(req *http.Request, token string) { req.Header.Set(name, token) }
}

// Clock is a clock that only moves when told. Its method Now is for
// gorm.Config.NowFunc and sessionhttp.Config.Now. It is safe for concurrent use;
// make it with [NewClock].
//
// IsActive, IsExpired and IsFresh of a session go by the machine's clock
// all the same.
type Clock struct {
	mu  sync.Mutex
	now time.Time
}

// NewClock makes a clock that stands at that time.
func NewClock(now time.Time) *Clock { return &Clock{now: now} }

// Now is the clock's time.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Set moves the clock to a time, also back.
func (c *Clock) Set(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = now
}

// Advance moves the clock on.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}
