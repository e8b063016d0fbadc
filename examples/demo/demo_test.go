package main

import (
	"fmt"
	"hash"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gormsessions/gormsessions"
	"github.com/gormsessions/gormsessions/internal/conformance"
	"github.com/gormsessions/gormsessions/sessiontest"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
	"gorm.io/gorm/schema"
)

const (
	email    = "ada@example.com"
	password = "correct horse battery"
)

// visitor is a browser at a site under test.
type visitor struct {
	t      *testing.T
	site   *site
	root   http.Handler
	cookie *http.Cookie
	from   string // the address
}

func newVisitor(t *testing.T, o options) *visitor {
	t.Helper()
	db, err := open(filepath.Join(t.TempDir(), "test.db"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = closePool(db) })
	return visit(t, db, o)
}

// config is what open uses, for the databases that are not opened by it.
func config() *gorm.Config {
	return &gorm.Config{Logger: logger.Discard, TranslateError: true, NamingStrategy: schema.NamingStrategy{TablePrefix: "demo_"}}
}

func visit(t *testing.T, db *gorm.DB, o options) *visitor {
	t.Helper()
	if o.log == nil {
		o.log = slog.New(slog.DiscardHandler)
	}
	if o.iterations == 0 {
		o.iterations = 10
	}
	s, err := newSite(db, o)
	if err != nil {
		t.Fatal(err)
	}
	root, err := s.handler()
	if err != nil {
		t.Fatal(err)
	}
	return &visitor{t: t, site: s, root: root, from: "192.0.2.1:1234"}
}

// another is a second browser.
func (v *visitor) another() *visitor {
	second := *v
	second.cookie = nil
	return &second
}

func (v *visitor) do(method, path string, fields url.Values, headers ...string) *httptest.ResponseRecorder {
	v.t.Helper()
	r := httptest.NewRequestWithContext(v.t.Context(), method, "http://demo.example"+path, strings.NewReader(fields.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Accept", "text/html")
	r.RemoteAddr = v.from
	if v.cookie != nil {
		r.AddCookie(v.cookie)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	v.root.ServeHTTP(w, r)
	for _, c := range w.Result().Cookies() {
		if v.cookie = c; c.MaxAge < 0 {
			v.cookie = nil
		}
	}
	return w
}

func (v *visitor) get(path string) *httptest.ResponseRecorder { return v.do("GET", path, nil) }

func (v *visitor) post(path string, fields ...string) *httptest.ResponseRecorder {
	return v.do("POST", path, values(fields...))
}

func values(fields ...string) url.Values {
	form := url.Values{}
	for i := 0; i < len(fields); i += 2 {
		form.Set(fields[i], fields[i+1])
	}
	return form
}

func (v *visitor) signUp() {
	v.t.Helper()
	v.want(v.post("/sign-up", "email", email, "password", password), http.StatusSeeOther)
}

func (v *visitor) signIn() {
	v.t.Helper()
	v.want(v.post("/sign-in", "email", email, "password", password), http.StatusSeeOther)
}

func (v *visitor) want(w *httptest.ResponseRecorder, status int, texts ...string) {
	v.t.Helper()
	if w.Code != status {
		v.t.Errorf("got %d, want %d\n%s", w.Code, status, w.Body)
	}
	for _, text := range texts {
		if !strings.Contains(w.Body.String(), text) {
			v.t.Errorf("the page does not say %q\n%s", text, w.Body)
		}
	}
}

// TestR40 is the matrix: which requests may change something, by what the browser
// says of where they come from.
func TestR40(t *testing.T) {
	const absent = ""
	sites := map[string]bool{absent: true, "same-origin": true, "none": true, "same-site": false, "cross-site": false, "nonsense": false}
	origins := map[string]bool{absent: true, "http://demo.example": true, "https://evil.example": false, "http://demo.example.evil.example": false,
		"http://evil.demo.example": false, "http://demo.example:81": false, "null": false}
	targets := []struct {
		path   string
		fields url.Values
	}{
		{"/sign-up", values("email", "new@example.com", "password", password)},
		{"/sign-in", values("email", email, "password", password)},
		{"/sign-out", nil},
		{"/password", values("current", password, "new", "another horse")},
		{"/confirm", values("password", password)},
		{"/keys", values("name", "Backup", "days", "0")},
		{"/devices/sign-out-others", nil},
		{"/devices/sign-out-everywhere", nil},
		{"/api/project/name", nil},
		{"/nowhere", nil},
	}
	v := newVisitor(t, options{})
	v.signUp()
	mine := v.cookie
	for site, siteGood := range sites {
		for origin, originGood := range origins {
			// What the browser says of the site decides; only an old one, which
			// says nothing, is judged by the Origin.
			refused := !siteGood || site == absent && !originGood
			var headers []string
			if site != absent {
				headers = append(headers, "Sec-Fetch-Site", site)
			}
			if origin != absent {
				headers = append(headers, "Origin", origin)
			}
			for _, target := range targets {
				for _, method := range []string{"POST", "PUT", "PATCH", "DELETE"} {
					if !refused {
						break // below
					}
					v.cookie = mine
					w := v.do(method, target.path, target.fields, headers...)
					if w.Code != http.StatusForbidden || w.Header().Get("Set-Cookie") != "" {
						t.Errorf("%s %s from site %q, origin %q: got %d, %q", method, target.path, site, origin, w.Code, w.Header().Get("Set-Cookie"))
					}
				}
			}
			for _, method := range []string{"GET", "HEAD"} { // a link from elsewhere is fine
				v.cookie = mine
				if w := v.do(method, "/account", nil, headers...); w.Code != http.StatusOK {
					t.Errorf("%s from site %q, origin %q: got %d", method, site, origin, w.Code)
				}
			}
			if w := v.another().do("POST", "/sign-in", values("email", email, "password", password), headers...); (w.Code == http.StatusForbidden) != refused {
				t.Errorf("sign in from site %q, origin %q: got %d, refused should be %t", site, origin, w.Code, refused)
			}
		}
	}
	// And none of it did anything.
	v.cookie = mine
	v.want(v.get("/account"), http.StatusOK)
	var users, keys int64
	v.site.db.Model(&User{}).Count(&users)
	v.site.db.Model(&APIKey{}).Count(&keys)
	if users != 1 || keys != 0 {
		t.Errorf("got %d users and %d keys", users, keys)
	}
	v.another().signIn() // the password is the same
}

// TestUniformErrors asks for an e-mail that has an account and one that has none.
func TestUniformErrors(t *testing.T) {
	v := newVisitor(t, options{})
	v.signUp()
	v = v.another()
	wrong := v.post("/sign-in", "email", email, "password", "wrong password")
	v.want(wrong, http.StatusUnprocessableEntity, "The e-mail or the password is wrong.")
	for _, other := range []string{"nobody@example.com", "no address", "\x00", "a@" + strings.Repeat("b", 300)} {
		got := v.post("/sign-in", "email", other, "password", "wrong password")
		if got.Code != wrong.Code || !strings.Contains(got.Body.String(), "The e-mail or the password is wrong.") || got.Header().Get("Set-Cookie") != "" {
			t.Errorf("%.30q: got %d\n%s", other, got.Code, got.Body)
		}
	}
	same := v.post("/sign-in", "email", "nobody@example.com", "password", "wrong password").Body.String()
	if got := strings.ReplaceAll(same, "nobody@example.com", email); got != wrong.Body.String() {
		t.Errorf("the pages differ:\n%s\n%s", got, wrong.Body)
	}
	if w := v.post("/sign-in", "email", email, "password", strings.Repeat("x", 1000)); w.Code != http.StatusUnprocessableEntity {
		t.Errorf("a long password: got %d", w.Code)
	}
}

// TestUniformTime counts what costs the time: one derivation, whatever is wrong.
func TestUniformTime(t *testing.T) {
	v := newVisitor(t, options{})
	v.signUp()
	derive, derived := v.site.passwords.key, 0
	v.site.passwords.key = func(h func() hash.Hash, password string, salt []byte, iterations, size int) ([]byte, error) {
		derived += iterations
		return derive(h, password, salt, iterations, size)
	}
	for _, address := range []string{email, "nobody@example.com", "no address"} {
		derived = 0
		v.post("/sign-in", "email", address, "password", "wrong password")
		if want := v.site.passwords.iterations; derived != want {
			t.Errorf("%s: got %d iterations, want %d", address, derived, want)
		}
	}
}

func TestSlowDown(t *testing.T) {
	clock := sessiontest.NewClock(time.Now())
	v := newVisitor(t, options{now: clock.Now})
	v.signUp()
	v = v.another()
	try := func(address, password string) *httptest.ResponseRecorder {
		return v.post("/sign-in", "email", address, "password", password)
	}
	for _, address := range []string{email, "nobody@example.com"} { // alike for both
		for i := range 5 {
			if w := try(address, "wrong password"); w.Code != http.StatusUnprocessableEntity {
				t.Fatalf("%s, try %d: got %d", address, i, w.Code)
			}
		}
		wait := time.Second
		for range 8 {
			w := try(address, password)
			if got := w.Header().Get("Retry-After"); w.Code != http.StatusTooManyRequests || got != fmt.Sprint(wait.Seconds()) {
				t.Fatalf("%s: got %d, Retry-After %s, want %v", address, w.Code, got, wait)
			}
			clock.Advance(wait)
			v.from = fmt.Sprintf("192.0.2.%d:1", int(wait.Seconds())%250+2) // another address is no way round
			v.want(try(address, "wrong password"), http.StatusUnprocessableEntity)
			wait = min(2*wait, longestWait)
		}
	}
	clock.Advance(longestWait)
	v.signIn()
	v.want(try(email, "wrong password"), http.StatusUnprocessableEntity) // and all is forgotten
	v.signIn()
}

// TestSlowDownOfOthers: a stranger who guesses holds nobody up who is signed in, and
// who may want to change the password right now.
func TestSlowDownOfOthers(t *testing.T) {
	v := newVisitor(t, options{})
	v.signUp()
	eve := v.another()
	eve.from = "198.51.100.7:1"
	for range 5 {
		eve.want(eve.post("/sign-in", "email", email, "password", "wrong password"), http.StatusUnprocessableEntity)
	}
	eve.want(eve.post("/sign-in", "email", email, "password", password), http.StatusTooManyRequests)
	v.want(v.post("/confirm", "password", password), http.StatusSeeOther)
	v.want(v.post("/password", "current", password, "new", "another horse"), http.StatusSeeOther)

	// In a session, too, guesses are slow; and those before have not been forgotten.
	for range 5 {
		v.want(v.post("/confirm", "password", "wrong password"), http.StatusUnprocessableEntity)
	}
	v.want(v.post("/confirm", "password", "another horse"), http.StatusTooManyRequests)
	eve.want(eve.post("/sign-in", "email", email, "password", "another horse"), http.StatusTooManyRequests)
}

// TestAliases: MariaDB takes letters with and without accents for the same, so
// that an account would have many names, each with tries of its own.
func TestAliases(t *testing.T) {
	for _, d := range []conformance.Database{conformance.SQLiteFile(), conformance.PostgreSQL(), conformance.MariaDB()} {
		t.Run(d.Name, func(t *testing.T) {
			t.Parallel()
			v := visit(t, d.Open(t, d.Dialect(t), config()), options{})
			v.signUp()
			for _, alias := range []string{"adá@example.com", "äda@example.com", "ada@éxample.com"} {
				v.want(v.another().post("/sign-in", "email", alias, "password", password), http.StatusUnprocessableEntity)
			}
			v.another().signIn()
		})
	}
}

func TestSlowDownByAddress(t *testing.T) {
	clock := sessiontest.NewClock(time.Now())
	v := newVisitor(t, options{now: clock.Now})
	v.signUp()
	v = v.another()
	v.from = "[2001:db8::1]:1"
	for i := range 20 { // many accounts from one network
		v.from = fmt.Sprintf("[2001:db8::%d]:1", i)
		v.want(v.post("/sign-in", "email", fmt.Sprintf("user%d@example.com", i), "password", "wrong password"), http.StatusUnprocessableEntity)
	}
	v.want(v.post("/sign-in", "email", email, "password", password), http.StatusTooManyRequests)
	v.from = "[2001:db8:0:1::1]:1"
	v.signIn()
}

// TestSlowDownAtOnce makes many tries at the same time: none goes uncounted.
func TestSlowDownAtOnce(t *testing.T) {
	attempts := newThrottle(time.Now)
	var passed, all sync.WaitGroup
	var mu sync.Mutex
	count := 0
	passed.Add(1)
	for range 100 {
		all.Go(func() {
			passed.Wait()
			if attempts.begin(byAccount(email)) == 0 {
				mu.Lock()
				defer mu.Unlock()
				count++
			}
		})
	}
	passed.Done()
	all.Wait()
	if count != 5 {
		t.Errorf("%d tries passed, want 5", count)
	}
}

// TestThrottleIsBounded makes up many accounts: they take no more room than there is,
// and push out nobody's failures.
func TestThrottleIsBounded(t *testing.T) {
	attempts := newThrottle(sessiontest.NewClock(time.Now()).Now)
	person := func(i int) limit { return byAccount(fmt.Sprint("person ", i)) }
	for i := range 5 * 100 {
		attempts.begin(person(i % 100))
	}
	for i := range 2 * maxCounts {
		attempts.begin(byAccount(fmt.Sprint(i)))
	}
	if n := len(attempts.counts); n > maxCounts {
		t.Errorf("it holds %d", n)
	}
	for i := range 100 {
		if wait := attempts.begin(person(i)); wait == 0 {
			t.Errorf("the failures of %d are forgotten", i)
		}
	}
	for i := range 2 * maxCounts { // where all slow somebody down, some have to go
		for range 5 {
			attempts.begin(byAccount(fmt.Sprint(i)))
		}
	}
	if n := len(attempts.counts); n > maxCounts {
		t.Errorf("it holds %d", n)
	}
}

// TestOthersAreOutOfReach gives one person the ids of another's device and key.
func TestOthersAreOutOfReach(t *testing.T) {
	v := newVisitor(t, options{})
	v.signUp()
	v.want(v.post("/keys", "name", "Backup", "days", "0"), http.StatusOK, "Copy it now.")
	var device Device
	var key APIKey
	if err := v.site.db.Take(&device).Error; err != nil {
		t.Fatal(err)
	}
	if err := v.site.db.Take(&key).Error; err != nil {
		t.Fatal(err)
	}
	eve := v.another()
	eve.want(eve.post("/sign-up", "email", "eve@example.com", "password", password), http.StatusSeeOther)
	eve.post("/devices/" + device.ID.String() + "/sign-out")
	eve.post("/devices/"+device.ID.String()+"/name", "name", "Eve's")
	eve.post("/keys/" + key.ID.String() + "/revoke")
	eve.post("/devices/sign-out-others")
	eve.post("/devices/sign-out-everywhere")
	v.want(v.get("/account"), http.StatusOK)
	v.want(v.get("/keys"), http.StatusOK, "Backup")
	if err := v.site.db.Take(&device).Error; err != nil || device.Name != "" {
		t.Errorf("the device is called %q, %v", device.Name, err)
	}
	v.want(v.post("/devices/nonsense/sign-out"), http.StatusNotFound)
}

func TestPasswordChange(t *testing.T) {
	databases := []conformance.Database{conformance.SQLiteFile(), conformance.PostgreSQL(), conformance.MariaDB()}
	for _, d := range databases {
		t.Run(d.Name, func(t *testing.T) {
			t.Parallel()
			db := d.Open(t, d.Dialect(t), config())
			v := visit(t, db, options{})
			v.signUp()
			other := v.another()
			other.signIn()
			before := v.cookie.Value
			v.want(v.post("/password", "current", "wrong password", "new", "another horse"), http.StatusUnprocessableEntity, "That is not your password.")
			v.want(v.post("/password", "current", password, "new", "short"), http.StatusUnprocessableEntity, "8 characters or more")
			other.want(other.get("/account"), http.StatusOK)

			v.want(v.post("/password", "current", password, "new", "another horse"), http.StatusSeeOther)
			if v.cookie.Value == before {
				t.Error("the own session was not rotated")
			}
			v.want(v.get("/account?done=password"), http.StatusOK, "Your password is changed", "No other device is signed in.")
			other.want(other.get("/account"), http.StatusSeeOther)
			if other.cookie != nil {
				t.Error("the other keeps its cookie")
			}
			other.want(other.post("/sign-in", "email", email, "password", password), http.StatusUnprocessableEntity)
			other.want(other.post("/sign-in", "email", email, "password", "another horse"), http.StatusSeeOther)
		})
	}
}

// TestPasswordChangedMeanwhile signs in with a password that is changed between
// its check and the session.
func TestPasswordChangedMeanwhile(t *testing.T) {
	v := newVisitor(t, options{})
	v.signUp()
	r := httptest.NewRequestWithContext(t.Context(), "POST", "/sign-in", nil)
	w := httptest.NewRecorder()
	stale := User{ID: 1, Email: email, Password: "that of before"}
	if err := v.site.enter(w, r, &stale); err != errWrong {
		t.Errorf("got %v", err)
	}
	if n, err := v.site.sessions.Count(t.Context(), gormsessions.Active); n != 1 || err != nil {
		t.Errorf("%d sessions are active, %v: want that of the sign-up", n, err)
	}
	for _, c := range w.Result().Cookies() {
		if c.MaxAge >= 0 {
			t.Errorf("got the cookie %v", c)
		}
	}
}

// TestSessionIsOver sends what a page that is still open can send.
func TestSessionIsOver(t *testing.T) {
	v := newVisitor(t, options{})
	v.signUp()
	over := v.cookie
	v.want(v.post("/sign-out"), http.StatusSeeOther)
	for _, path := range []string{"/devices/sign-out-others", "/password", "/keys"} {
		v.cookie = over
		w := v.do("POST", path, nil, "Referer", "http://demo.example/account")
		if got := w.Header().Get("Location"); w.Code != http.StatusSeeOther || got != "/sign-in?return_to=%2Faccount" || v.cookie != nil {
			t.Errorf("%s: got %d to %q, cookie %v", path, w.Code, got, v.cookie)
		}
	}

	// It ends while the password is checked: no failure of the database.
	v.signIn()
	derive := v.site.passwords.key
	v.site.passwords.key = func(h func() hash.Hash, password string, salt []byte, iterations, size int) ([]byte, error) {
		if _, err := v.site.sessions.Revoke(t.Context(), "signed out on another device", gormsessions.Active); err != nil {
			t.Error(err)
		}
		return derive(h, password, salt, iterations, size)
	}
	w := v.post("/confirm", "password", password)
	if got := w.Header().Get("Location"); w.Code != http.StatusSeeOther || got != "/sign-in" || v.cookie != nil {
		t.Errorf("meanwhile: got %d to %q, cookie %v", w.Code, got, v.cookie)
	}
}

// TestTwoCookies is a page too, not a word.
func TestTwoCookies(t *testing.T) {
	v := newVisitor(t, options{})
	for _, path := range []string{"/account", "/", "/sign-in"} {
		v.want(v.do("GET", path, nil, "Cookie", "__Host-session=a; __Host-session=b"), http.StatusBadRequest, "<h1>Your browser sent two sign-ins</h1>")
	}
}

// TestDatabaseDown: nobody sees the pages for strangers because of it. Who brings no
// cookie is one.
func TestDatabaseDown(t *testing.T) {
	v := newVisitor(t, options{})
	v.signUp()
	if err := closePool(v.site.db); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/", "/sign-in", "/account"} {
		v.want(v.get(path), http.StatusServiceUnavailable, "nobody was signed out")
	}
	v.want(v.get("/nowhere"), http.StatusNotFound)
	if v.cookie == nil {
		t.Error("the cookie is gone")
	}
	v.want(v.another().get("/"), http.StatusOK)
	v.want(v.another().get("/sign-in"), http.StatusOK)
}

// TestProblemKeepsTheNavigation: who follows a broken link is still signed in.
func TestProblemKeepsTheNavigation(t *testing.T) {
	v := newVisitor(t, options{})
	v.signUp()
	v.want(v.get("/nowhere"), http.StatusNotFound, email)
	if w := v.another().get("/nowhere"); strings.Contains(w.Body.String(), "<nav") {
		t.Errorf("a stranger sees\n%s", w.Body)
	}
}

func TestFreshness(t *testing.T) {
	v := newVisitor(t, options{fresh: time.Nanosecond})
	v.signUp()
	for _, w := range []*httptest.ResponseRecorder{v.get("/keys/new"), v.post("/keys", "name", "Backup", "days", "0")} {
		if got := w.Header().Get("Location"); w.Code != http.StatusSeeOther || got != "/confirm?return_to=/keys/new" {
			t.Errorf("got %d to %q", w.Code, got)
		}
	}
	v.site.fresh = time.Hour
	before := v.cookie.Value
	v.want(v.post("/confirm", "password", "wrong password"), http.StatusUnprocessableEntity)
	w := v.post("/confirm?return_to=/keys/new", "password", password)
	if got := w.Header().Get("Location"); got != "/keys/new" || v.cookie.Value == before {
		t.Errorf("got %q, rotated %t", got, v.cookie.Value != before)
	}
	w = v.post("/confirm?return_to=//evil.example", "password", password)
	if got := w.Header().Get("Location"); got != "/" {
		t.Errorf("got %q", got)
	}
}

func TestKeys(t *testing.T) {
	v := newVisitor(t, options{url: "http://demo.example"})
	v.signUp()
	v.want(v.get("/keys"), http.StatusOK, "There is no key yet.")
	v.want(v.post("/keys", "name", " ", "days", "0"), http.StatusUnprocessableEntity, "Give the key a name")
	v.want(v.post("/keys", "name", "Backup", "days", "-1"), http.StatusUnprocessableEntity, "how long")
	for i := range maxKeys {
		v.want(v.post("/keys", "name", fmt.Sprintf("Key %d", i), "days", "30"), http.StatusOK, "Copy it now.", "http://demo.example/api/me")
	}
	v.want(v.post("/keys", "name", "One more", "days", "30"), http.StatusUnprocessableEntity, "10 keys, which is the most")
	v.want(v.get("/keys"), http.StatusOK, "demo_", "in 30 days", "Key 0", "Key 9")
}

func TestSignUp(t *testing.T) {
	v := newVisitor(t, options{})
	for _, c := range []struct{ email, password, want string }{
		{"no address", password, "not an e-mail address"},
		{"Ada <ada@example.com>", password, "not an e-mail address"},
		{email, "short", "8 characters or more"},
		{email, strings.Repeat("x", 200), "more than the 128 bytes"},
	} {
		v.want(v.post("/sign-up", "email", c.email, "password", c.password), http.StatusUnprocessableEntity, c.want)
	}
	v.want(v.post("/sign-up", "email", " ADA@example.com ", "password", password), http.StatusSeeOther)
	v = v.another()
	v.want(v.post("/sign-up", "email", email, "password", password), http.StatusUnprocessableEntity, "There is an account")
	v.signIn()
	v.want(v.post("/sign-up", "email", strings.Repeat("x", 20<<10)), http.StatusRequestEntityTooLarge)
}

// TestHeaders looks at every page for the headers that all have.
func TestHeaders(t *testing.T) {
	v := newVisitor(t, options{})
	v.signUp()
	for _, path := range []string{"/", "/account", "/keys", "/keys/new", "/statistics", "/password", "/confirm", "/nowhere", "/api/me", "/static/style.css"} {
		w := v.get(path)
		policy := w.Header().Get("Content-Security-Policy")
		if !strings.Contains(policy, "default-src 'none'") || strings.Contains(policy, "unsafe") || w.Header().Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: got %v", path, w.Header())
		}
		for _, inline := range []string{"<style", " style=", "<script>", " onclick="} {
			if strings.Contains(w.Body.String(), inline) {
				t.Errorf("%s: holds %s, which the policy forbids", path, inline)
			}
		}
	}
	if w := v.get("/static/"); w.Code != http.StatusNotFound {
		t.Errorf("the list of static files: got %d", w.Code)
	}
}

// TestPagesEscape puts markup wherever somebody can write something.
func TestPagesEscape(t *testing.T) {
	v := newVisitor(t, options{})
	const markup = `"><script>alert(1)</script>`
	v.signUp()
	v.do("POST", "/sign-in", values("email", email, "password", password), "User-Agent", markup)
	var device Device
	if err := v.site.db.Last(&device).Error; err != nil {
		t.Fatal(err)
	}
	v.post("/devices/"+device.ID.String()+"/name", "name", markup)
	v.post("/keys", "name", markup, "days", "0")
	for _, path := range []string{"/account", "/keys", "/statistics", "/account?done=" + url.QueryEscape(markup)} {
		if body := v.get(path).Body.String(); strings.Contains(body, "<script>alert") {
			t.Errorf("%s: %s", path, body)
		}
	}
	w := v.another().post("/sign-in?return_to="+url.QueryEscape("/"+markup), "email", markup, "password", "x")
	if strings.Contains(w.Body.String(), "<script>alert") {
		t.Errorf("the sign-in page: %s", w.Body)
	}
}

// TestLogHoldsNoToken reads all that a visit logs.
func TestLogHoldsNoToken(t *testing.T) {
	var log strings.Builder
	v := newVisitor(t, options{log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	v.signUp()
	tokens := []string{v.cookie.Value}
	v.signIn()
	tokens = append(tokens, v.cookie.Value)
	key := v.post("/keys", "name", "Backup", "days", "0").Body.String()
	_, key, _ = strings.Cut(key, `class="secret">`)
	key, _, _ = strings.Cut(key, "<")
	v.post("/password", "current", password, "new", "another horse")
	tokens = append(tokens, v.cookie.Value, key, password, "another horse")
	v.post("/sign-out")
	for _, token := range tokens {
		if len(token) < 8 || strings.Contains(log.String(), token) {
			t.Errorf("the log holds %q:\n%s", token, &log)
		}
	}
	for _, kind := range []string{"created", "rotated", "revoked"} {
		if !strings.Contains(log.String(), "event.kind="+kind) {
			t.Errorf("the log does not tell of %q", kind)
		}
	}
}

func TestPasswords(t *testing.T) {
	p := newPasswords(owaspIterations)
	stored, err := p.hash(t.Context(), password)
	if err != nil || !strings.HasPrefix(stored, "pbkdf2-sha256$600000$") {
		t.Fatalf("got %q, %v", stored, err)
	}
	for guess, want := range map[string]bool{password: true, password + " ": false, "": false} {
		if got, err := p.verify(t.Context(), stored, guess); got != want || err != nil {
			t.Errorf("%q: got %t, %v", guess, got, err)
		}
	}
	if got, err := p.verify(t.Context(), "", ""); got || err != nil {
		t.Errorf("nothing stored: got %t, %v", got, err)
	}
	for _, damaged := range []string{"x", "md5$1$$", "pbkdf2-sha256$x$$", "pbkdf2-sha256$1$!$", "pbkdf2-sha256$1$$!"} {
		if got, err := newPasswords(1).verify(t.Context(), damaged, password); got || err == nil {
			t.Errorf("%q: got %t, %v", damaged, got, err)
		}
	}
}

func TestDescribe(t *testing.T) {
	for _, c := range []struct{ header, want string }{
		{"", "Unknown device"},
		{"nonsense", "Unknown device"},
		{"curl/8.14.1", "curl"},
		{"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0", "Firefox on Linux"},
		{"Mozilla/5.0 (Android 15; Mobile; rv:140.0) Gecko/140.0 Firefox/140.0", "Firefox on Android"},
		{"Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) FxiOS/140.0 Mobile/15E148 Safari/605.1.15", "Firefox on iPhone"},
		{"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/137.0.0.0 Safari/537.36", "Chrome on Windows"},
		{"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/137.0.0.0 Safari/537.36 Edg/137.0.0.0", "Edge on Windows"},
		{"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/137.0.0.0 Safari/537.36 OPR/120.0.0.0", "Opera on Windows"},
		{"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 Safari/605.1.15", "Safari on macOS"},
		{"Mozilla/5.0 (iPad; CPU OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) CriOS/137.0 Mobile/15E148 Safari/604.1", "Chrome on iPad"},
		{"Mozilla/5.0 (Linux; Android 15) AppleWebKit/537.36 (KHTML, like Gecko) SamsungBrowser/27.0 Chrome/125.0.0.0 Mobile Safari/537.36", "Samsung Internet on Android"},
		{"Mozilla/5.0 (X11; CrOS x86_64 14541.0.0) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/137.0.0.0 Safari/537.36", "Chrome on ChromeOS"},
		{"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) HeadlessChrome/137.0.0.0 Safari/537.36", "Chrome on Linux"},
		{"Mozilla/5.0 (Windows NT 10.0; Trident/7.0; rv:11.0) like Gecko", "Internet Explorer on Windows"},
		{"Mozilla/5.0 (X11; FreeBSD amd64; rv:140.0) Gecko/20100101 Firefox/140.0", "Firefox on FreeBSD"},
		{"Something (Windows NT 10.0)", "Windows"},
	} {
		if got := describe(c.header).String(); got != c.want {
			t.Errorf("%q: got %q, want %q", c.header, got, c.want)
		}
	}
}

func TestChart(t *testing.T) {
	now := time.Date(2026, 3, 31, 15, 0, 0, 0, time.UTC)
	at := func(day, hour int) time.Time { return time.Date(2026, 3, day, hour, 0, 0, 0, time.UTC) }
	end := func(t time.Time) *time.Time { return &t }
	lives := []life{
		{CreatedAt: at(31, 9)},                                                    // never expires
		{CreatedAt: at(31, 10), RevokedAt: end(at(31, 11))},                       // in and out on one day
		{CreatedAt: at(29, 0), ExpiresAt: end(at(30, 12))},                        // over the night to the 30th
		{CreatedAt: at(29, 23), ExpiresAt: end(now)},                              // expires right now
		{CreatedAt: at(1, 0).AddDate(0, 0, -10), RevokedAt: end(at(3, 0))},        // from before the chart
		{CreatedAt: at(2, 0), ExpiresAt: end(at(9, 0)), RevokedAt: end(at(5, 0))}, // the first day
	}
	days := daysUntil(now)
	if len(days) != 30 || !days[29].Equal(now) || !days[28].Equal(at(31, 0)) || !days[0].Equal(at(3, 0)) {
		t.Fatalf("got %v", days)
	}
	entered, stayed := signIns(lives, days), active(lives, days)
	if got := entered; got[29] != 2 || got[27] != 2 || got[28] != 0 || got[0] != 1 {
		t.Errorf("sign-ins: got %v", got)
	}
	// A session that ends with the day is over at its end.
	if got := stayed; got[29] != 1 || got[28] != 1 || got[27] != 2 || got[0] != 1 || got[2] != 0 {
		t.Errorf("active: got %v", got)
	}

	bars, line := newChart("Sign-ins", "sign-ins", days, entered, true), newChart("Active", "devices", days, stayed, false)
	if bars.Max != 2 || bars.Half != 1 || bars.First != "2 Mar" || bars.Total != 5 || bars.Empty || bars.Line != "" {
		t.Errorf("got %+v", bars)
	}
	if b := bars.Bars[29]; b.Height != height || b.Y != 0 || b.X+b.Width > bars.Width || b.Day != "31 Mar" {
		t.Errorf("got %+v", b)
	}
	// A day stands at the same place in both.
	if !strings.HasPrefix(line.Line, "12,80 ") || !strings.HasSuffix(line.Line, " 708,80") || strings.Count(line.Area, " ") != 31 {
		t.Errorf("got %q, %q", line.Line, line.Area)
	}
	var labels []string
	for i, b := range bars.Bars {
		if b.Label != "" {
			labels = append(labels, fmt.Sprint(i, " ", b.Label))
		}
	}
	if want := []string{"1 3 Mar", "8 10 Mar", "15 17 Mar", "22 24 Mar", "29 today"}; !slices.Equal(labels, want) {
		t.Errorf("got %q, want %q", labels, want)
	}
	if empty := newChart("", "", days, make([]int, 30), false); !empty.Empty || empty.Max != 2 {
		t.Errorf("got %+v", empty)
	}
	for n, want := range map[int]int{0: 2, 1: 2, 3: 4, 7: 8, 9: 10, 11: 12, 13: 16, 17: 20, 99: 100, 101: 120, 1000: 1000} {
		if got := roundUp(max(n, 2)); got != want {
			t.Errorf("roundUp(%d): got %d, want %d", n, got, want)
		}
	}
}

func TestRelative(t *testing.T) {
	now := time.Date(2026, 3, 31, 15, 0, 0, 0, time.UTC)
	for d, want := range map[time.Duration]string{
		0: "just now", -59 * time.Second: "just now", time.Second: "in a moment",
		-time.Minute: "1 minute ago", -59 * time.Minute: "59 minutes ago", -time.Hour: "1 hour ago", -24 * time.Hour: "1 day ago",
		7*24*time.Hour - time.Second: "in 7 days", 2 * time.Hour: "in 2 hours", 90 * 24 * time.Hour: "29 June 2026",
	} {
		if got := relative(now.Add(d), now); got != want {
			t.Errorf("%v: got %q, want %q", d, got, want)
		}
	}
	if got := momentOf((*time.Time)(nil), now); got.Text != "never" {
		t.Errorf("got %+v", got)
	}
}

// TestSample makes it on every database, and shows all pages of it.
func TestSample(t *testing.T) {
	for _, d := range []conformance.Database{conformance.SQLiteFile(), conformance.PostgreSQL(), conformance.MariaDB()} {
		t.Run(d.Name, func(t *testing.T) {
			t.Parallel()
			db := d.Open(t, d.Dialect(t), config())
			v := visit(t, db, options{})
			var out strings.Builder
			if err := v.site.addSample(t.Context(), &out); err != nil {
				t.Fatal(err)
			}
			fields := strings.Fields(out.String())
			v.want(v.post("/sign-in", "email", sampleEmail, "password", fields[len(fields)-1]), http.StatusSeeOther)
			v.want(v.get("/account"), http.StatusOK, "Desk at the library", "Safari on iPhone", "2001:db8:4f::12")
			v.want(v.get("/keys"), http.StatusOK, "Backup", "project:write")
			v.want(v.get("/statistics"), http.StatusOK, "<dd>5</dd>", "polyline")
			if err := v.site.addSample(t.Context(), &out); err != nil || !strings.Contains(out.String(), "is in the database already") {
				t.Errorf("again: got %v, %s", err, &out)
			}
			v.want(v.post("/devices/sign-out-everywhere"), http.StatusSeeOther)
			if n, err := v.site.sessions.Count(t.Context(), gormsessions.Active); n != 0 || err != nil {
				t.Errorf("%d are active, %v", n, err)
			}
		})
	}
}

// TestLive holds a page open while things happen.
func TestLive(t *testing.T) {
	v := newVisitor(t, options{})
	server := httptest.NewServer(v.root)
	defer server.Close()
	v.signUp()
	lines := func() (next func() string, stop func()) {
		r, err := http.NewRequestWithContext(t.Context(), "GET", server.URL+"/live", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.AddCookie(v.cookie)
		res, err := server.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		if got := res.Header.Get("Content-Type"); got != "text/event-stream" {
			t.Fatalf("got %d %s", res.StatusCode, got)
		}
		buf := make([]byte, 1024)
		return func() string {
			n, err := res.Body.Read(buf)
			if err != nil && err != io.EOF {
				return err.Error()
			}
			return strings.TrimSpace(string(buf[:n]))
		}, func() { _ = res.Body.Close() }
	}
	first, stop := lines()
	defer stop()
	var got []string
	got = append(got, first())
	other := v.another()
	other.signIn()
	got = append(got, first())
	other.post("/devices/sign-out-others")
	got = append(got, first(), first())
	if want := []string{": hello", "event: changed\ndata:", "event: ended\ndata:", ""}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}

	// When the server stops, so do the streams.
	v.cookie = other.cookie
	second, stop := lines()
	defer stop()
	second()
	v.site.live.close()
	v.site.live.close()
	if got := second(); got != "" {
		t.Errorf("got %q", got)
	}
}
