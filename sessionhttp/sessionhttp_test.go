package sessionhttp_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gormsessions/gormsessions"
	"github.com/gormsessions/gormsessions/internal/conformance"
	"github.com/gormsessions/gormsessions/sessionhttp"
	"github.com/gormsessions/gormsessions/sessiontest"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
)

type User struct {
	ID    uint
	Email string
}

type UserSession struct {
	gormsessions.Session[User, uint]
	Device string
	Forget bool
}

func (s *UserSession) RememberMe() bool { return !s.Forget }

type APIKey struct {
	gormsessions.Session[User, uint]
	gormsessions.Abilities
}

// env is a database with two kinds of sessions, and a user.
type env struct {
	t        testing.TB
	file     string
	db       *gorm.DB
	clock    *sessiontest.Clock
	sessions *gormsessions.Plugin[UserSession]
	keys     *gormsessions.Plugin[APIKey]
	user     User
	queries  atomic.Int64
	failures atomic.Int64 // that OnError was told of
}

func start(t testing.TB) *env {
	t.Helper()
	e := &env{t: t, clock: sessiontest.NewClock(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)), user: User{Email: "ada@example.com"}}
	e.file = filepath.Join(t.TempDir(), "test.db")
	db := e.again()
	e.db, e.sessions, e.keys = db, gormsessions.New[UserSession](gormsessions.Config{}), gormsessions.New[APIKey](gormsessions.Config{Prefix: "key"})
	must(t, db.Use(e.sessions))
	must(t, db.Use(e.keys))
	must(t, db.Create(&e.user).Error)
	must(t, db.Callback().Query().Before("gorm:query").Register("test:count", func(*gorm.DB) { e.queries.Add(1) }))
	return e
}

// again opens the database once more, as another program would.
func (e *env) again() *gorm.DB {
	e.t.Helper()
	db, err := gorm.Open(sqlite.Open(e.file+conformance.SQLiteOptions), &gorm.Config{NowFunc: e.clock.Now, Logger: logger.Discard})
	must(e.t, err)
	e.t.Cleanup(func() { closeDB(e.t, db) })
	return db
}

func closeDB(t testing.TB, db *gorm.DB) {
	t.Helper()
	pool, err := db.DB()
	must(t, err)
	must(t, pool.Close())
}

func (e *env) config(sources ...sessionhttp.Source) sessionhttp.Config {
	return sessionhttp.Config{Sources: sources, Now: e.clock.Now, OnError: func(*http.Request, error) { e.failures.Add(1) }}
}

func newWeb[T any](t testing.TB, sessions *gormsessions.Plugin[T], config sessionhttp.Config) *sessionhttp.Web[T] {
	t.Helper()
	web, err := sessionhttp.New(sessions, config)
	must(t, err)
	return web
}

func (e *env) web(edit ...func(*sessionhttp.Config)) *sessionhttp.Web[UserSession] {
	e.t.Helper()
	config := e.config()
	for _, fn := range edit {
		fn(&config)
	}
	return newWeb(e.t, e.sessions, config)
}

// session creates one, as on another device.
func (e *env) session(edit ...func(*UserSession)) *UserSession {
	e.t.Helper()
	s := &UserSession{Device: "Firefox"}
	s.OwnerID = e.user.ID
	for _, fn := range edit {
		fn(s)
	}
	must(e.t, e.sessions.Create(context.Background(), s))
	return s
}

func (e *env) key(abilities ...string) *APIKey {
	e.t.Helper()
	k := &APIKey{Abilities: abilities}
	k.OwnerID = e.user.ID
	must(e.t, e.keys.Create(context.Background(), k))
	return k
}

// active reports whether a session is, in the database.
func (e *env) active(s *UserSession) bool {
	e.t.Helper()
	n, err := e.sessions.Count(context.Background(), gormsessions.Active, gormsessions.WithID(s.ID))
	must(e.t, err)
	return n == 1
}

type edit = func(*http.Request)

func request(edits ...edit) *http.Request {
	r := httptest.NewRequest("GET", "https://app.example/account", nil)
	for _, fn := range edits {
		fn(r)
	}
	return r
}

func with(header, value string) edit { return func(r *http.Request) { r.Header.Add(header, value) } }

func cookie(token gormsessions.Token) edit {
	return with("Cookie", sessionhttp.DefaultCookieName+"="+string(token))
}

func bearer(token gormsessions.Token) edit { return with("Authorization", "Bearer "+string(token)) }

func method(name string) edit { return func(r *http.Request) { r.Method = name } }

// target is what the request line says.
func target(uri string) edit {
	return func(r *http.Request) {
		u, err := url.ParseRequestURI(uri)
		if err != nil {
			panic(err)
		}
		r.URL, r.RequestURI = u, uri
	}
}

func page(r *http.Request) { r.Header.Set("Accept", "text/html,application/xhtml+xml,*/*;q=0.8") }

func serve(h http.Handler, edits ...edit) *http.Response {
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, request(edits...))
	return rec.Result()
}

// hello answers with the device of the session.
var hello = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	if s, ok := sessionhttp.FromContext[UserSession](r.Context()); ok {
		_, _ = io.WriteString(w, "hello, "+s.Device)
		return
	}
	_, _ = io.WriteString(w, "hello, stranger")
})

func body(res *http.Response) string {
	text, _ := io.ReadAll(res.Body)
	return strings.TrimSpace(string(text))
}

// set is the cookie that a response sets, nil: none.
func set(t testing.TB, res *http.Response, name string) *http.Cookie {
	t.Helper()
	var found *http.Cookie
	for _, c := range res.Cookies() {
		if c.Name == name {
			if found != nil {
				t.Errorf("the response sets %s twice", name)
			}
			found = c
		}
	}
	return found
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func want[V comparable](t testing.TB, what string, got, want V) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func wantErr(t testing.TB, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: got error %v, want %v", what, got, want)
	}
}

// wantPrivate asserts what R36 asks for.
func wantPrivate(t testing.TB, res *http.Response, vary string) {
	t.Helper()
	want(t, "Cache-Control", res.Header.Get("Cache-Control"), "no-store")
	want(t, "Vary", strings.Join(res.Header["Vary"], ", "), vary)
}

func TestR33DefaultCookie(t *testing.T) {
	e := start(t)
	web := e.web()
	s := &UserSession{}
	s.OwnerID = e.user.ID
	res := serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { must(t, web.SignIn(w, r, s)) }))
	line := fmt.Sprintf("__Host-session=%s; Path=/; Max-Age=604800; HttpOnly; Secure; SameSite=Lax", string(s.Token))
	want(t, "Set-Cookie", strings.Join(res.Header["Set-Cookie"], "\n"), line)
}

func TestR33InsecureConfig(t *testing.T) {
	e := start(t)
	cookie := func(c sessionhttp.Cookie) sessionhttp.Config { return e.config(c) }
	for _, c := range []struct {
		config sessionhttp.Config
		field  string // "": it is fine
	}{
		{sessionhttp.Config{}, ""},
		{cookie(sessionhttp.Cookie{}), ""},
		{e.config(&sessionhttp.Cookie{}), ""},
		{cookie(sessionhttp.Cookie{SameSite: http.SameSiteStrictMode}), ""},
		{cookie(sessionhttp.Cookie{SameSite: http.SameSiteDefaultMode}), ""},
		{cookie(sessionhttp.Cookie{SameSite: http.SameSiteNoneMode}), ""},
		{cookie(sessionhttp.Cookie{Name: "session", Insecure: true}), ""},
		{cookie(sessionhttp.Cookie{Name: "__Secure-session", Domain: "app.example", Path: "/app"}), ""},
		{e.config(sessionhttp.Cookie{}, sessionhttp.Bearer(), sessionhttp.Header("x-api-key"), sessionhttp.Header("X-Other")), ""},

		{cookie(sessionhttp.Cookie{Domain: "app.example"}), "Sources[0]: Cookie.Domain"},
		{cookie(sessionhttp.Cookie{Path: "/app"}), "Sources[0]: Cookie.Path"},
		{cookie(sessionhttp.Cookie{Insecure: true}), "Sources[0]: Cookie.Insecure"},
		{cookie(sessionhttp.Cookie{Name: "__hOsT-session", Domain: "app.example"}), "Sources[0]: Cookie.Domain"},
		{cookie(sessionhttp.Cookie{Name: "__Secure-session", Insecure: true}), "Sources[0]: Cookie.Insecure"},
		{cookie(sessionhttp.Cookie{Name: "__Http-session", Insecure: true}), "Sources[0]: Cookie.Insecure"},
		{cookie(sessionhttp.Cookie{Name: "session", Insecure: true, SameSite: http.SameSiteNoneMode}), "Sources[0]: Cookie.Insecure"},
		{cookie(sessionhttp.Cookie{SameSite: 7}), "Sources[0]: Cookie.SameSite"},
		{cookie(sessionhttp.Cookie{Name: "a b"}), "Sources[0]: Cookie.Name"},
		{cookie(sessionhttp.Cookie{Name: "a=b"}), "Sources[0]: Cookie.Name"},
		{cookie(sessionhttp.Cookie{Name: "session", Path: "app"}), "Sources[0]: Cookie.Path"},
		{cookie(sessionhttp.Cookie{Name: "session", Path: "/;Domain=evil"}), "Sources[0]: Cookie.Path"},
		{cookie(sessionhttp.Cookie{Name: "session", Domain: "a;b"}), "Sources[0]: Cookie.Domain"},
		{e.config(sessionhttp.Bearer(), nil), "Sources[1]"},
		{e.config((*sessionhttp.Cookie)(nil)), "Sources[0]"},
		{e.config(sessionhttp.Cookie{}, sessionhttp.Cookie{Name: "b"}), "Sources[1]"},
		{e.config(sessionhttp.Bearer(), sessionhttp.Bearer()), "Sources[1]"},
		{e.config(sessionhttp.Header("X-Key"), sessionhttp.Header("x-key")), "Sources[1]"},
		{e.config(sessionhttp.Header("")), "Sources[0]: Header"},
		{e.config(sessionhttp.Header("X Key")), "Sources[0]: Header"},
		{e.config(sessionhttp.Header("cookie")), "Sources[0]: Header"},
		{e.config(sessionhttp.Header("authorization")), "Sources[0]: Header"},
		{sessionhttp.Config{Scopes: []gormsessions.Scope{nil}}, "Scopes[0]"},
		{sessionhttp.Config{Realm: `a" b`}, "Realm"},
		{sessionhttp.Config{Realm: "a\r\nSet-Cookie: b"}, "Realm"},
		{sessionhttp.Config{SignInURL: "/sign-in?theme=dark"}, ""},
		{sessionhttp.Config{SignInURL: "sign-in"}, "SignInURL"},
		{sessionhttp.Config{SignInURL: "//evil.example/"}, "SignInURL"},
		{sessionhttp.Config{SignInURL: "https://evil.example/"}, "SignInURL"},
		{sessionhttp.Config{SignInURL: "/sign-in", Sources: []sessionhttp.Source{sessionhttp.Bearer()}}, "SignInURL"},
	} {
		_, err := sessionhttp.New(e.sessions, c.config)
		switch {
		case c.field == "":
			must(t, err)
		case err == nil || !strings.HasPrefix(err.Error(), "sessionhttp: Config."+c.field+": "):
			t.Errorf("got error %v, want one about %s", err, c.field)
		}
	}
	if _, err := sessionhttp.New[UserSession](nil, sessionhttp.Config{}); err == nil {
		t.Error("a nil plugin is no error")
	}
}

// A browser's jar takes the cookie, keeps it to the host, and gives it back.
func TestCookieJar(t *testing.T) {
	e := start(t)
	web := e.web()
	mux := http.NewServeMux()
	mux.HandleFunc("POST /sign-in", func(w http.ResponseWriter, r *http.Request) {
		s := &UserSession{Device: "jar"}
		s.OwnerID = e.user.ID
		must(t, web.SignIn(w, r, s))
		hello(w, r) // it is the session of this request already
	})
	mux.HandleFunc("POST /sign-out", func(w http.ResponseWriter, r *http.Request) {
		must(t, web.SignOut(w, r))
		hello(w, r)
	})
	mux.Handle("GET /", hello)
	server := httptest.NewUnstartedServer(web.Handler(mux))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	client := server.Client()
	client.Jar, _ = cookiejar.New(nil)
	for _, step := range []struct{ method, path, want string }{
		{"GET", "/", "hello, stranger"},
		{"POST", "/sign-in", "hello, jar"},
		{"GET", "/", "hello, jar"},
		{"GET", "/", "hello, jar"},
		{"POST", "/sign-out", "hello, stranger"},
		{"GET", "/", "hello, stranger"},
		{"POST", "/sign-out", "hello, stranger"},
	} {
		req, err := http.NewRequestWithContext(t.Context(), step.method, server.URL+step.path, nil)
		must(t, err)
		res, err := client.Do(req)
		must(t, err)
		want(t, step.method+" "+step.path, body(res), step.want)
		want(t, "protocol", res.Proto, "HTTP/2.0")
		wantPrivate(t, res, "Cookie")
		must(t, res.Body.Close())
	}
}

// TestCookieLife: the cookie lives as long as the session.
func TestCookieLife(t *testing.T) {
	e := start(t)
	web := e.web()
	now := e.clock.Now()
	at := func(d time.Duration) *time.Time { t := now.Add(d); return &t }
	const day = 24 * 60 * 60
	for _, c := range []struct {
		name   string
		edit   func(*UserSession)
		maxAge int
	}{
		{"default", func(*UserSession) {}, 7 * day},
		{"idle timeout", func(s *UserSession) { s.IdleTimeout = time.Hour }, 60 * 60},
		{"deadline", func(s *UserSession) { s.Deadline = at(90 * time.Minute) }, 90 * 60},
		{"fixed", func(s *UserSession) { s.ExpiresAt = at(30*24*time.Hour + time.Microsecond) }, 30*day + 1},
		{"for ever", func(s *UserSession) { s.IdleTimeout = gormsessions.Never }, 400 * day},
		{"longer than browsers allow", func(s *UserSession) { s.ExpiresAt = at(1000 * 24 * time.Hour) }, 400 * day},
		{"over already", func(s *UserSession) { s.ExpiresAt = at(-time.Hour) }, 1},
		{"until the browser is closed", func(s *UserSession) { s.Forget = true }, 0},
	} {
		s := &UserSession{}
		s.OwnerID = e.user.ID
		c.edit(s)
		res := serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { must(t, web.SignIn(w, r, s)) }))
		want(t, c.name, set(t, res, sessionhttp.DefaultCookieName).MaxAge, c.maxAge)
	}
}

// TestCookieRenewed: when the session is extended, so is the cookie, and only then.
func TestCookieRenewed(t *testing.T) {
	e := start(t)
	web := e.web()
	s, forget, fixed := e.session(), e.session(func(s *UserSession) { s.Forget = true }), e.session(func(s *UserSession) {
		expiry := e.clock.Now().Add(48 * time.Hour)
		s.ExpiresAt = &expiry
	})
	for _, step := range []struct {
		advance time.Duration
		session *UserSession
		maxAge  int // 0: no cookie
	}{
		{0, s, 0}, // created in this very moment
		{time.Minute, s, 0},
		{2 * time.Hour, s, 7 * 24 * 60 * 60},
		{time.Minute, s, 0},
		{59 * time.Minute, s, 7 * 24 * 60 * 60},
		{0, forget, 0},
		{0, fixed, 48*60*60 - 3*60*60 - 60},
	} {
		e.clock.Advance(step.advance)
		res := serve(web.Handler(hello), cookie(step.session.Token))
		want(t, "body", body(res), "hello, Firefox")
		c := set(t, res, sessionhttp.DefaultCookieName)
		switch {
		case (c != nil) != (step.maxAge != 0):
			t.Errorf("at %v: got cookie %v, want %d", e.clock.Now(), c, step.maxAge)
		case c != nil:
			want(t, "Max-Age", c.MaxAge, step.maxAge)
			want(t, "value", c.Value, string(step.session.Token))
		}
	}
	// By a header there is no cookie to renew.
	api := newWeb(t, e.sessions, e.config(sessionhttp.Cookie{}, sessionhttp.Bearer()))
	e.clock.Advance(2 * time.Hour)
	if c := set(t, serve(api.Handler(hello), bearer(s.Token)), sessionhttp.DefaultCookieName); c != nil {
		t.Errorf("got %v, want no cookie", c)
	}
}

func TestR34SignIn(t *testing.T) {
	e := start(t)
	web := e.web()
	fresh := func() *UserSession {
		s := &UserSession{Device: "new"}
		s.OwnerID = e.user.ID
		return s
	}
	do := func(s *UserSession, edits ...edit) (*http.Response, error) {
		var err error
		res := serve(web.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = sessionhttp.FromContext[UserSession](r.Context())
			err = web.SignIn(w, r, s)
			got, ok := sessionhttp.FromContext[UserSession](r.Context())
			want(t, "FromContext after SignIn", ok && got == s, err == nil)
		})), edits...)
		return res, err
	}

	t.Run("EndsTheOldOne", func(t *testing.T) {
		old, other, s := e.session(), e.session(), fresh()
		e.clock.Advance(2 * time.Hour) // so that the old one is extended, too
		res, err := do(s, cookie(old.Token))
		must(t, err)
		want(t, "old", e.active(old), false)
		want(t, "another device", e.active(other), true)
		want(t, "new", e.active(s), true)
		c := set(t, res, sessionhttp.DefaultCookieName)
		want(t, "cookie", c.Value, string(s.Token))
		wantPrivate(t, res, "Cookie")
		row, err := e.sessions.Get(t.Context(), gormsessions.WithID(old.ID))
		must(t, err)
		want(t, "reason", row.RevokedReason, "signed in again")
	})

	t.Run("Fixation", func(t *testing.T) {
		// Tokens that a client made up, or took from somebody: none is adopted.
		unknown := e.session()
		must(t, e.db.Delete(unknown).Error)
		for _, token := range []gormsessions.Token{"x", unknown.Token, ""} {
			s := fresh()
			res, err := do(s, cookie(token))
			must(t, err)
			got := set(t, res, sessionhttp.DefaultCookieName).Value
			want(t, "reused", got == string(token), false)
		}
		s := fresh()
		s.Token = unknown.Token
		_, err := do(s)
		wantErr(t, "a Token of its own", err, gormsessions.ErrUnsafeCreate)
		s = fresh()
		s.ID = unknown.ID
		_, err = do(s)
		wantErr(t, "an ID of its own", err, gormsessions.ErrUnsafeCreate)
		_, err = do(e.session())
		wantErr(t, "a session that was created before", err, gormsessions.ErrUnsafeCreate)
	})

	t.Run("SeveralBrought", func(t *testing.T) {
		a, b, s := e.session(), e.session(), fresh()
		_, err := do(s, cookie(a.Token), cookie(b.Token))
		must(t, err)
		want(t, "a", e.active(a), false)
		want(t, "b", e.active(b), false)
		want(t, "new", e.active(s), true)

		var many []edit
		for i := range 100 {
			many = append(many, cookie(gormsessions.Token(fmt.Sprint("token", i))))
		}
		_, err = do(fresh(), many...)
		wantErr(t, "a hundred", err, sessionhttp.ErrBadRequest)
	})

	t.Run("NothingIsSetWhereItFails", func(t *testing.T) {
		old := e.session()
		s := fresh()
		s.OwnerID = 0
		res, err := do(s, cookie(old.Token))
		wantErr(t, "no owner", err, gormsessions.ErrZeroOwner)
		want(t, "Set-Cookie", len(res.Header["Set-Cookie"]), 0)
		want(t, "token", s.Token, "")
		res, err = do(nil)
		want(t, "nil is an error", err != nil, true)
		want(t, "Set-Cookie", len(res.Header["Set-Cookie"]), 0)

		api := newWeb(t, e.sessions, e.config(sessionhttp.Bearer()))
		if err := api.SignIn(httptest.NewRecorder(), request(), fresh()); err == nil {
			t.Error("SignIn without a Cookie is no error")
		}
	})

	t.Run("AfterTheResponse", func(t *testing.T) {
		before, err := e.sessions.Count(t.Context())
		must(t, err)
		serve(web.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusOK)
			wantErr(t, "SignIn", web.SignIn(w, r, fresh()), sessionhttp.ErrWritten)
		})))
		wantErr(t, "SignIn", web.SignIn(written{httptest.NewRecorder()}, request(), fresh()), sessionhttp.ErrWritten)
		after, err := e.sessions.Count(t.Context())
		must(t, err)
		want(t, "sessions", after, before)
	})

	t.Run("LimitedContext", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		rec, s := httptest.NewRecorder(), fresh()
		wantErr(t, "SignIn", web.SignIn(rec, request().WithContext(ctx), s), context.Canceled)
		want(t, "Set-Cookie", len(rec.Header()["Set-Cookie"]), 0)
	})
}

// written is a response that knows that it was written, as gin's.
type written struct{ http.ResponseWriter }

func (written) Written() bool { return true }

// TestRotate: the new token is in the cookie, and nothing brings the old one back.
func TestRotate(t *testing.T) {
	e := start(t)
	// Another plugin, which writes at each use.
	sessions := gormsessions.New[APIKey](gormsessions.Config{TouchInterval: time.Microsecond})
	db := e.again()
	must(t, db.Use(sessions))
	web := newWeb(t, sessions, e.config(sessionhttp.Cookie{}, sessionhttp.Bearer()))
	create := func() *APIKey {
		k := &APIKey{}
		k.OwnerID = e.user.ID
		must(t, sessions.Create(t.Context(), k))
		return k
	}
	rotate := func(edits ...edit) (res *http.Response, got *APIKey, err error) {
		res = serve(web.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			got, _ = sessionhttp.FromContext[APIKey](r.Context())
			if err = web.Reauthenticate(w, r, got); err != nil {
				web.Refuse(w, r, err)
				return
			}
			again, ok := sessionhttp.FromContext[APIKey](r.Context())
			want(t, "FromContext", ok && again == got, true)
		})), edits...)
		return res, got, err
	}
	read := func(edits ...edit) *http.Response {
		e.clock.Advance(time.Second)
		return serve(web.Require(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})), edits...)
	}
	name := sessionhttp.DefaultCookieName

	k := create()
	e.clock.Advance(time.Hour)
	res, got, err := rotate(cookie(k.Token))
	must(t, err)
	c := set(t, res, name)
	want(t, "the token is new", c.Value == string(got.Token) && got.Token != k.Token, true)
	want(t, "Max-Age", c.MaxAge, 7*24*60*60)
	want(t, "AuthenticatedAt", got.AuthenticatedAt, e.clock.Now())
	wantPrivate(t, res, "Cookie, Authorization")

	// The old one works for a while, and is extended by it, but not renewed.
	res = read(cookie(k.Token))
	want(t, "the old token", res.StatusCode, 200)
	want(t, "the old token: cookies", len(res.Cookies()), 0)
	res = read(cookie(got.Token))
	want(t, "the new token", res.StatusCode, 200)
	want(t, "the new token: renewed", set(t, res, name).Value, string(got.Token))

	// A second rotation by the old token is too late, and leaves the cookie.
	res, _, err = rotate(cookie(k.Token))
	wantErr(t, "by the old token", err, gormsessions.ErrRotated)
	want(t, "by the old token", res.StatusCode, http.StatusConflict)
	want(t, "by the old token: cookies", len(res.Cookies()), 0)

	// Signing out by the old token ends the session all the same.
	must(t, web.SignOut(httptest.NewRecorder(), request(cookie(k.Token))))
	want(t, "signed out", read(cookie(got.Token)).StatusCode, 401)

	// A token that comes back after its grace ends the session, and is deleted.
	k = create()
	_, got, err = rotate(cookie(k.Token))
	must(t, err)
	e.clock.Advance(time.Minute)
	res = read(cookie(k.Token))
	want(t, "reused", res.StatusCode, 401)
	want(t, "reused: Max-Age", set(t, res, name).MaxAge, -1)
	want(t, "reused: the new token", read(cookie(got.Token)).StatusCode, 401)

	// By a header there is no cookie: the caller tells the client.
	k = create()
	res, got, err = rotate(bearer(k.Token))
	must(t, err)
	want(t, "bearer: cookies", len(res.Cookies()), 0)
	want(t, "bearer", read(bearer(got.Token)).StatusCode, 200)

	// Not after the response, not without a session, not another's.
	k = create()
	before := k.Token
	wantErr(t, "written", web.Rotate(written{httptest.NewRecorder()}, request(cookie(k.Token)), k), sessionhttp.ErrWritten)
	for what, edits := range map[string][]edit{"none": nil, "another's": {cookie(create().Token)}} {
		rec := httptest.NewRecorder()
		err := web.Rotate(rec, request(edits...), k)
		want(t, what+": an error", err != nil, true)
		want(t, what+": nobody is signed in", errors.Is(err, gormsessions.ErrNoSession), what == "none")
		want(t, what+": headers", len(rec.Header()), 0)
	}
	if err := web.Rotate(httptest.NewRecorder(), request(cookie(k.Token)), nil); err == nil {
		t.Error("nil is no error")
	}
	want(t, "token", k.Token, before)
	want(t, "it still works", read(cookie(before)).StatusCode, 200)
}

func TestR35SignOut(t *testing.T) {
	e := start(t)
	web := e.web()
	s, other := e.session(), e.session()
	signOut := web.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = sessionhttp.FromContext[UserSession](r.Context())
		must(t, web.SignOut(w, r))
		want(t, "active before the response is written", e.active(s), false)
		hello(w, r)
	}))
	e.clock.Advance(2 * time.Hour) // so that a renewed cookie is on its way
	for _, edits := range [][]edit{{cookie(s.Token)}, {cookie(s.Token)}, {cookie("x")}, nil} {
		res := serve(signOut, edits...)
		want(t, "body", body(res), "hello, stranger")
		want(t, "Set-Cookie", strings.Join(res.Header["Set-Cookie"], "\n"),
			"__Host-session=; Path=/; Max-Age=0; HttpOnly; Secure; SameSite=Lax")
		wantPrivate(t, res, "Cookie")
	}
	want(t, "another device", e.active(other), true)
	row, err := e.sessions.Get(t.Context(), gormsessions.WithID(s.ID))
	must(t, err)
	want(t, "reason", row.RevokedReason, "signed out")

	t.Run("Attributes", func(t *testing.T) {
		c := sessionhttp.Cookie{Name: "sid", Domain: "app.example", Path: "/app", SameSite: http.SameSiteStrictMode, Insecure: true}
		rec := httptest.NewRecorder()
		must(t, newWeb(t, e.sessions, e.config(c)).SignOut(rec, request()))
		want(t, "Set-Cookie", rec.Header().Get("Set-Cookie"), "sid=; Path=/app; Domain=app.example; Max-Age=0; HttpOnly; SameSite=Strict")
	})

	t.Run("TheClientHasGone", func(t *testing.T) {
		s := e.session()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		must(t, web.SignOut(httptest.NewRecorder(), request(cookie(s.Token)).WithContext(ctx)))
		want(t, "active", e.active(s), false)
	})

	t.Run("DatabaseDown", func(t *testing.T) {
		closeDB(t, e.db)
		rec := httptest.NewRecorder()
		err := web.SignOut(rec, request(cookie(other.Token)))
		if err == nil || errors.Is(err, gormsessions.ErrNoSession) {
			t.Errorf("got %v, want a failure", err)
		}
		want(t, "headers", len(rec.Header()), 0)
	})
}

func TestR36Headers(t *testing.T) {
	e := start(t)
	web := newWeb(t, e.sessions, e.config(sessionhttp.Cookie{}, sessionhttp.Bearer(), sessionhttp.Header("X-Api-Key")))
	s := e.session()
	const vary = "Cookie, Authorization, X-Api-Key"
	handler := func(before, after string, ask bool) http.Handler {
		return web.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if before != "" {
				w.Header().Set("Cache-Control", before)
			}
			if ask {
				_, _ = sessionhttp.FromContext[UserSession](r.Context())
			}
			if after != "" {
				w.Header().Set("Cache-Control", after)
			}
		}))
	}
	for _, c := range []struct {
		before, after string
		ask           bool
		want          string
	}{
		{"", "", false, ""},
		{"public, max-age=60", "", false, "public, max-age=60"},
		{"", "", true, "no-store"},
		{"public, max-age=60", "", true, "no-store"},
		{"", "public, max-age=60", true, "no-store"},
		{"", "max-age=60", true, "no-store"},
		{"", `private="X-A", max-age=60`, true, "no-store"},
		{"", "Private, max-age=60", true, "Private, max-age=60"},
		{"", "max-age=60,no-store", true, "max-age=60,no-store"},
	} {
		for _, edits := range [][]edit{nil, {cookie(s.Token)}, {cookie("x")}} {
			before := e.queries.Load()
			res := serve(handler(c.before, c.after, c.ask), edits...)
			want(t, "Cache-Control", res.Header.Get("Cache-Control"), c.want)
			if c.ask {
				want(t, "Vary", strings.Join(res.Header["Vary"], ", "), vary)
				continue
			}
			want(t, "Vary", len(res.Header["Vary"]), 0)
			want(t, "queries of who does not ask", e.queries.Load()-before, 0)
		}
	}

	t.Run("VaryIsKept", func(t *testing.T) {
		res := serve(web.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Vary", "accept-encoding, COOKIE")
			hello(w, r)
		})))
		want(t, "Vary", strings.Join(res.Header["Vary"], ", "), "accept-encoding, COOKIE, Authorization, X-Api-Key")
	})
	t.Run("Require", func(t *testing.T) {
		wantPrivate(t, serve(web.Require(hello), cookie(s.Token)), vary)
		wantPrivate(t, serve(web.Require(hello), cookie("x")), vary)
		wantPrivate(t, serve(web.Require(hello)), vary)
	})
	t.Run("Panic", func(t *testing.T) {
		// Whoever recovers outside still answers with the headers.
		rec := httptest.NewRecorder()
		func() {
			defer func() { _ = recover() }()
			web.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _ = sessionhttp.FromContext[UserSession](r.Context())
				panic("oops")
			})).ServeHTTP(rec, request(cookie(s.Token)))
		}()
		wantPrivate(t, rec.Result(), vary)
	})
}

func TestR37Credentials(t *testing.T) {
	e := start(t)
	web := newWeb(t, e.sessions, e.config(sessionhttp.Cookie{}, sessionhttp.Bearer(), sessionhttp.Header("X-Api-Key")))
	s, other := e.session(), e.session()
	token, second := string(s.Token), string(other.Token)
	for _, c := range []struct {
		name  string
		edits []edit
		want  error
	}{
		{"none", nil, gormsessions.ErrNoSession},
		{"cookie", []edit{cookie(s.Token)}, nil},
		{"bearer", []edit{bearer(s.Token)}, nil},
		{"bearer in lower case", []edit{with("Authorization", "bearer  "+token)}, nil},
		{"header", []edit{with("x-api-key", token)}, nil},
		{"the same one everywhere", []edit{cookie(s.Token), bearer(s.Token), with("X-Api-Key", token), cookie(s.Token)}, nil},
		{"another scheme", []edit{with("Authorization", "Basic "+token)}, gormsessions.ErrNoSession},
		{"another scheme and a cookie", []edit{with("Authorization", "Basic "+token), cookie(s.Token)}, nil},
		{"another cookie", []edit{with("Cookie", "session="+token)}, gormsessions.ErrNoSession},
		{"name in lower case", []edit{with("Cookie", "__host-session="+token)}, gormsessions.ErrNoSession},
		{"query", []edit{target("/?__Host-session=" + token + "&token=" + token + "&access_token=" + token)}, gormsessions.ErrNoSession},
		{"path", []edit{target("/" + token + ";__Host-session=" + token)}, gormsessions.ErrNoSession},
		{"user info", []edit{target("https://" + token + "@app.example/")}, gormsessions.ErrNoSession},
		{"form", []edit{func(r *http.Request) {
			r.Method, r.Body = "POST", io.NopCloser(strings.NewReader("access_token="+token))
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}}, gormsessions.ErrNoSession},

		{"cookie and bearer", []edit{cookie(s.Token), bearer(other.Token)}, sessionhttp.ErrBadRequest},
		{"cookie and header", []edit{cookie(s.Token), with("X-Api-Key", second)}, sessionhttp.ErrBadRequest},
		{"cookie and a bad header", []edit{cookie(s.Token), with("X-Api-Key", "x")}, sessionhttp.ErrBadRequest},
		{"two cookies", []edit{cookie(s.Token), cookie(other.Token)}, sessionhttp.ErrBadRequest},
		{"two cookies in one line", []edit{with("Cookie", "__Host-session="+token+"; __Host-session="+second)}, sessionhttp.ErrBadRequest},
		{"a planted cookie", []edit{with("Cookie", "__Host-session=x; __Host-session="+token)}, sessionhttp.ErrBadRequest},
		{"an empty cookie beside it", []edit{with("Cookie", "__Host-session=; __Host-session="+token)}, sessionhttp.ErrBadRequest},
		{"two headers", []edit{with("X-Api-Key", token), with("X-Api-Key", second)}, sessionhttp.ErrBadRequest},
		{"two bearers", []edit{bearer(s.Token), bearer(other.Token)}, sessionhttp.ErrBadRequest},
		{"the same bearer twice", []edit{bearer(s.Token), bearer(s.Token)}, sessionhttp.ErrBadRequest},
		{"two schemes", []edit{with("Authorization", "Basic eDp5"), bearer(s.Token)}, sessionhttp.ErrBadRequest},
		{"two bearers in one line", []edit{with("Authorization", "Bearer "+token+", Bearer "+second)}, sessionhttp.ErrBadRequest},
		{"malformed bearer and a cookie", []edit{with("Authorization", "Bearer"), cookie(s.Token)}, sessionhttp.ErrBadRequest},
	} {
		before := e.queries.Load()
		got, err := web.Check(request(c.edits...))
		if c.want == nil {
			if err != nil || got.ID != s.ID {
				t.Errorf("%s: got %v, %v", c.name, got, err)
			}
			continue
		}
		wantErr(t, c.name, err, c.want)
		wantErr(t, c.name+", for who does not know ErrBadRequest", err, gormsessions.ErrNoSession)
		want(t, c.name+": bad request", errors.Is(err, sessionhttp.ErrBadRequest), c.want == sessionhttp.ErrBadRequest)
		want(t, c.name+": queries", e.queries.Load()-before, 0)
		status := http.StatusUnauthorized
		if c.want == sessionhttp.ErrBadRequest {
			status = http.StatusBadRequest
		}
		want(t, c.name, serve(web.Require(hello), c.edits...).StatusCode, status)
	}

	t.Run("Naive", func(t *testing.T) {
		// The first cookie of the name is whoever planted it.
		c, err := request(cookie("planted"), cookie(s.Token)).Cookie(sessionhttp.DefaultCookieName)
		if err != nil || c.Value != "planted" {
			t.Errorf("got %v, %v", c, err)
		}
	})
}

func TestR38Bearer(t *testing.T) {
	e := start(t)
	api := newWeb(t, e.keys, e.config(sessionhttp.Bearer()))
	good, expired, revoked, deleted := e.key("posts:read"), e.key(), e.key(), e.key()
	past := e.clock.Now().Add(-time.Hour)
	must(t, e.keys.SetExpiry(t.Context(), expired, &past))
	_, err := e.keys.Revoke(t.Context(), "lost", gormsessions.WithID(revoked.ID))
	must(t, err)
	must(t, e.db.Delete(deleted).Error)
	ok := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	const invalid = `Bearer realm="sessions", error="invalid_token"`
	for _, c := range []struct {
		name      string
		edits     []edit
		status    int
		challenge string
	}{
		{"none", nil, 401, `Bearer realm="sessions"`},
		{"another scheme", []edit{with("Authorization", "Basic eDp5")}, 401, `Bearer realm="sessions"`},
		{"cookie", []edit{cookie(good.Token)}, 401, `Bearer realm="sessions"`},
		{"made up", []edit{bearer("abc")}, 401, invalid},
		{"unknown", []edit{bearer(deleted.Token)}, 401, invalid},
		{"expired", []edit{bearer(expired.Token)}, 401, invalid},
		{"revoked", []edit{bearer(revoked.Token)}, 401, invalid},
		{"of another kind", []edit{bearer(e.session().Token)}, 401, invalid},
		{"empty", []edit{with("Authorization", "Bearer")}, 400, `Bearer realm="sessions", error="invalid_request"`},
		{"blank", []edit{with("Authorization", "Bearer  ")}, 400, `Bearer realm="sessions", error="invalid_request"`},
		{"malformed", []edit{bearer("a b")}, 400, `Bearer realm="sessions", error="invalid_request"`},
		{"padding alone", []edit{bearer("==")}, 400, `Bearer realm="sessions", error="invalid_request"`},
		{"not ASCII", []edit{bearer("ä")}, 400, `Bearer realm="sessions", error="invalid_request"`},
		{"good", []edit{bearer(good.Token)}, 200, ""},
	} {
		// A browser's wish for HTML, and a cookie, change nothing about it.
		res := serve(api.Require(ok), append(c.edits, page)...)
		want(t, c.name, res.StatusCode, c.status)
		want(t, c.name, strings.Join(res.Header["Www-Authenticate"], "; "), c.challenge)
		wantPrivate(t, res, "Authorization")
		if c.status != 200 {
			want(t, c.name, body(res), http.StatusText(c.status))
		}
	}

	t.Run("Abilities", func(t *testing.T) {
		for _, c := range []struct {
			ability, challenge string
			status             int
		}{
			{"posts:read", "", 200},
			{"posts:write", `Bearer realm="sessions", error="insufficient_scope", scope="posts:write"`, 403},
			{"posts:*", `Bearer realm="sessions", error="insufficient_scope", scope="posts:*"`, 403},
		} {
			res := serve(api.RequireAbility(c.ability)(ok), bearer(good.Token))
			want(t, c.ability, res.StatusCode, c.status)
			want(t, c.ability, res.Header.Get("WWW-Authenticate"), c.challenge)
		}
		for _, edits := range [][]edit{nil, {bearer("abc")}, {bearer(revoked.Token)}} {
			want(t, "without a key", serve(api.RequireAbility("posts:read")(ok), edits...).StatusCode, 401)
		}
		// A cookie makes nobody able to do more, and its 403 has no challenge.
		web := newWeb(t, e.keys, e.config())
		res := serve(web.RequireAbility("posts:read")(ok), cookie(e.key().Token))
		want(t, "in a cookie", res.StatusCode, 403)
		want(t, "in a cookie", res.Header.Get("WWW-Authenticate"), "")
		want(t, "in a cookie", serve(web.RequireAbility("posts:read")(ok), cookie(good.Token)).StatusCode, 200)
	})

	t.Run("NoAbilities", func(t *testing.T) {
		group, err := sessionhttp.Any(e.web(), newWeb(t, e.keys, e.config(sessionhttp.Bearer())))
		must(t, err)
		for name, fn := range map[string]func(){
			"the model has none":     func() { e.web().RequireAbility("posts:read") },
			"one of the models":      func() { group.RequireAbility("posts:read") },
			"the ability is empty":   func() { api.RequireAbility("") },
			"the ability is no word": func() { api.RequireAbility("Posts write") },
		} {
			func() {
				defer func() { want(t, name+": panics", recover() != nil, true) }()
				fn()
			}()
		}
	})

	t.Run("WhereTheyStand", func(t *testing.T) {
		type Rights struct{ Grants gormsessions.Abilities }
		type Robot struct {
			gormsessions.Base
			*Rights
		}
		robots := gormsessions.New[Robot](gormsessions.Config{})
		must(t, e.db.Use(robots))
		robot, idle := &Robot{Rights: &Rights{gormsessions.Abilities{"*"}}}, &Robot{Rights: &Rights{}}
		must(t, robots.Create(t.Context(), robot))
		must(t, robots.Create(t.Context(), idle))
		api := newWeb(t, robots, e.config(sessionhttp.Bearer())).RequireAbility("arms:move")(ok)
		want(t, "in a named field", serve(api, bearer(robot.Token)).StatusCode, 200)
		want(t, "none", serve(api, bearer(idle.Token)).StatusCode, 403)

		type Twice struct {
			gormsessions.Base
			Read, Write gormsessions.Abilities
		}
		defer func() { want(t, "two fields: panics", recover() != nil, true) }()
		newWeb(t, gormsessions.New[Twice](gormsessions.Config{}), sessionhttp.Config{}).RequireAbility("posts:read")
	})

	t.Run("OtherSources", func(t *testing.T) {
		web := newWeb(t, e.keys, sessionhttp.Config{Realm: "acme",
			Sources: []sessionhttp.Source{sessionhttp.Cookie{}, sessionhttp.Bearer(), sessionhttp.Header("X-Api-Key")}})
		for _, c := range []struct {
			edits []edit
			want  string
		}{
			{nil, `Cookie realm="acme"; Bearer realm="acme"; ApiKey realm="acme"`},
			{[]edit{cookie("x")}, `Cookie realm="acme"; Bearer realm="acme"; ApiKey realm="acme"`},
			{[]edit{bearer("x")}, `Cookie realm="acme"; Bearer realm="acme", error="invalid_token"; ApiKey realm="acme"`},
			{[]edit{cookie("x"), bearer("y")}, `Bearer realm="acme", error="invalid_request"`},
		} {
			res := serve(web.Require(ok), c.edits...)
			want(t, "WWW-Authenticate", strings.Join(res.Header["Www-Authenticate"], "; "), c.want)
		}
	})
}

func TestR39DatabaseDown(t *testing.T) {
	e := start(t)
	web := e.web(func(c *sessionhttp.Config) { c.SignInURL = "/sign-in" })
	s := e.session()
	closeDB(t, e.db)
	reached := false
	next := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true })
	outcomes := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, ok := sessionhttp.FromContext[UserSession](r.Context()); ok {
			t.Error("FromContext gives a session")
		}
		for _, get := range []func() (*UserSession, error){
			func() (*UserSession, error) { return web.Check(r) },
			func() (*UserSession, error) { return sessionhttp.Load[UserSession](r.Context()) },
		} {
			got, err := get()
			if got != nil || err == nil || errors.Is(err, gormsessions.ErrNoSession) {
				t.Errorf("got %v, %v, want a failure", got, err)
			}
			if strings.Contains(fmt.Sprint(err), string(s.Token)) {
				t.Error("the error shows the token")
			}
		}
		_, err := web.Check(r)
		web.Refuse(w, r, err)
	})
	for name, h := range map[string]http.Handler{
		"Require":         web.Require(next),
		"Handler":         web.Handler(outcomes),
		"Check alone":     http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, err := web.Check(r); web.Refuse(w, r, err) }),
		"Require, nested": web.Handler(web.Require(next)),
	} {
		e.failures.Store(0)
		res := serve(h, cookie(s.Token), page)
		want(t, name, res.StatusCode, http.StatusServiceUnavailable)
		want(t, name, body(res), "Service Unavailable")
		want(t, name+": Set-Cookie", len(res.Header["Set-Cookie"]), 0)
		want(t, name+": Location", res.Header.Get("Location"), "")
		want(t, name+": told of", e.failures.Load(), 1)
		wantPrivate(t, res, "Cookie")
	}
	want(t, "next was reached", reached, false)

	// Without a token nothing is asked of the database, so nothing fails.
	want(t, "no token", serve(web.Require(next)).StatusCode, http.StatusUnauthorized)

	// Nobody waits for this one.
	e.failures.Store(0)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	rec := httptest.NewRecorder()
	web.Require(next).ServeHTTP(rec, request(cookie(s.Token)).WithContext(ctx))
	want(t, "the client has gone", rec.Code, http.StatusServiceUnavailable)
	want(t, "the client has gone: told of", e.failures.Load(), 0)

	unregistered := newWeb(t, gormsessions.New[UserSession](gormsessions.Config{}), sessionhttp.Config{OnError: func(*http.Request, error) {}})
	want(t, "a plugin that is not registered", serve(unregistered.Require(next), cookie(s.Token)).StatusCode, http.StatusServiceUnavailable)
}

func TestRefuse(t *testing.T) {
	e := start(t)
	web := e.web(func(c *sessionhttp.Config) { c.SignInURL = "/sign-in?theme=dark" })
	s := e.session()
	to := func(path string) string {
		return "/sign-in?" + url.Values{"return_to": {path}, "theme": {"dark"}}.Encode()
	}
	for _, c := range []struct {
		name     string
		edits    []edit
		location string // "": 401
		clears   bool
	}{
		{"a page", []edit{page}, to("/account"), false},
		{"HEAD", []edit{page, method("HEAD")}, to("/account"), false},
		{"a page, and a dead cookie", []edit{page, cookie("x")}, to("/account"), true},
		{"a navigation", []edit{page, with("Sec-Fetch-Mode", "navigate")}, to("/account"), false},
		{"with a query", []edit{page, target("/a%20b?c=d&e=%2F")}, to("/a%20b?c=d&e=%2F"), false},
		{"absolute", []edit{page, target("https://evil.example/x")}, to("/x"), false},
		{"another host", []edit{page, target("//evil.example/x")}, "/sign-in?theme=dark", false},
		{"the front page", []edit{page, target("/")}, "/sign-in?theme=dark", false},
		{"the sign-in page itself", []edit{page, target("/sign-in?return_to=/x")}, "", false},
		{"a script", []edit{page, with("Sec-Fetch-Mode", "cors")}, "", false},
		{"an image", []edit{page, with("Sec-Fetch-Mode", "no-cors")}, "", false},
		{"JSON", []edit{with("Accept", "application/json")}, "", false},
		{"anything", []edit{with("Accept", "*/*")}, "", false},
		{"no Accept", nil, "", false},
		{"a form", []edit{page, method("POST")}, "/sign-in?theme=dark", false},
		{"a form, and a dead cookie", []edit{page, method("POST"), cookie("x")}, "/sign-in?theme=dark", true},
		{"a form, of a page", []edit{page, method("POST"), with("Referer", "https://app.example/devices?a=b#c")}, to("/devices?a=b"), false},
		{"a form, of the front page", []edit{page, method("POST"), with("Referer", "https://app.example")}, "/sign-in?theme=dark", false},
		{"a form, of the sign-in page", []edit{page, method("POST"), with("Referer", "https://app.example/sign-in")}, "/sign-in?theme=dark", false},
		{"a form, of another site", []edit{page, method("POST"), with("Referer", "https://evil.example/x")}, "/sign-in?theme=dark", false},
		{"a form, of nonsense", []edit{page, method("POST"), with("Referer", "https://app.example//evil.example")}, "/sign-in?theme=dark", false},
		{"a form, sent by a script", []edit{page, method("POST"), with("Sec-Fetch-Mode", "cors")}, "", false},
		{"a form, to the sign-in page itself", []edit{page, method("POST"), target("/sign-in")}, "", false},
		{"PUT", []edit{page, method("PUT")}, "", false},
		{"a dead cookie", []edit{cookie("x")}, "", true},
	} {
		res := serve(web.Require(hello), c.edits...)
		status := http.StatusSeeOther
		if c.location == "" {
			status = http.StatusUnauthorized
		}
		want(t, c.name, res.StatusCode, status)
		want(t, c.name, res.Header.Get("Location"), c.location)
		want(t, c.name, res.Header.Get("WWW-Authenticate") == "", c.location != "")
		want(t, c.name+": clears", res.Header.Get("Set-Cookie") == "__Host-session=; Path=/; Max-Age=0; HttpOnly; Secure; SameSite=Lax", c.clears)
		wantPrivate(t, res, "Cookie")
	}
	want(t, "signed in", body(serve(web.Require(hello), cookie(s.Token))), "hello, Firefox")

	t.Run("StripPrefix", func(t *testing.T) {
		res := serve(http.StripPrefix("/app", web.Require(hello)), page, target("/app/account?a=b"))
		want(t, "Location", res.Header.Get("Location"), to("/app/account?a=b"))
	})
	t.Run("WithoutSignInURL", func(t *testing.T) {
		want(t, "status", serve(e.web().Require(hello), page).StatusCode, http.StatusUnauthorized)
	})
	t.Run("TwoCookiesAreLeft", func(t *testing.T) {
		res := serve(web.Require(hello), cookie("x"), cookie(s.Token), page)
		want(t, "status", res.StatusCode, http.StatusBadRequest)
		want(t, "Set-Cookie", len(res.Header["Set-Cookie"]), 0)
	})
}

func TestAny(t *testing.T) {
	e := start(t)
	pages := e.web(func(c *sessionhttp.Config) { c.SignInURL = "/sign-in" })
	api := newWeb(t, e.keys, e.config(sessionhttp.Bearer()))
	group, err := sessionhttp.Any(pages, api)
	must(t, err)
	s, k := e.session(), e.key("posts:read")
	who := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, byCookie := sessionhttp.FromContext[UserSession](r.Context())
		_, byKey := sessionhttp.FromContext[APIKey](r.Context())
		_, _ = fmt.Fprint(w, byCookie, byKey)
	})
	for _, c := range []struct {
		name   string
		edits  []edit
		status int
		want   string // under Require, or a challenge
		loaded string // under Handler
	}{
		{"none", nil, 401, `Cookie realm="sessions"; Bearer realm="sessions"`, "false false"},
		{"a page", []edit{page}, 303, "", "false false"},
		{"cookie", []edit{cookie(s.Token)}, 200, "true false", "true false"},
		{"key", []edit{bearer(k.Token)}, 200, "false true", "false true"},
		{"both", []edit{cookie(s.Token), bearer(k.Token)}, 400, `Bearer realm="sessions", error="invalid_request"`, "false false"},
		{"a dead cookie and a key", []edit{cookie("x"), bearer(k.Token)}, 400, `Bearer realm="sessions", error="invalid_request"`, "false false"},
		{"swapped", []edit{cookie(k.Token)}, 401, `Cookie realm="sessions"; Bearer realm="sessions"`, "false false"},
		{"swapped, the other", []edit{bearer(s.Token)}, 401, `Cookie realm="sessions"; Bearer realm="sessions", error="invalid_token"`, "false false"},
		{"a dead key, a page", []edit{bearer("x"), page}, 401, `Cookie realm="sessions"; Bearer realm="sessions", error="invalid_token"`, "false false"},
	} {
		for name, h := range map[string]http.Handler{"alone": group.Require(who), "nested": group.Handler(pages.Handler(group.Require(who)))} {
			res := serve(h, c.edits...)
			want(t, c.name+" "+name, res.StatusCode, c.status)
			wantPrivate(t, res, "Cookie, Authorization")
			if c.status == 200 {
				want(t, c.name, body(res), c.want)
			} else if c.status != 303 {
				want(t, c.name, strings.Join(res.Header["Www-Authenticate"], "; "), c.want)
			}
		}
		for _, h := range []http.Handler{group.Handler(who), pages.Handler(api.Handler(group.Handler(who)))} {
			want(t, c.name+" under Handler", body(serve(h, c.edits...)), c.loaded)
		}
	}

	for name, members := range map[string][]sessionhttp.Member{
		"none":            {},
		"nil":             {pages, nil},
		"a nil Web":       {(*sessionhttp.Web[APIKey])(nil)},
		"the same twice":  {pages, pages},
		"the same T":      {pages, newWeb(t, e.sessions, e.config(sessionhttp.Bearer()))},
		"the same cookie": {pages, newWeb(t, e.keys, e.config(sessionhttp.Cookie{Name: sessionhttp.DefaultCookieName}))},
		"the same header": {api, newWeb(t, e.sessions, e.config(sessionhttp.Bearer()))},
	} {
		if _, err := sessionhttp.Any(members...); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	_, err = sessionhttp.Any(pages, newWeb(t, e.keys, e.config(sessionhttp.Cookie{Name: "other"})))
	must(t, err)
}

func TestScopes(t *testing.T) {
	e := start(t)
	web := e.web(func(c *sessionhttp.Config) {
		c.Scopes = []gormsessions.Scope{gormsessions.WithOwner, gormsessions.Where(gormsessions.Fields{"Device": "Firefox"})}
	})
	got, err := web.Check(request(cookie(e.session().Token)))
	must(t, err)
	want(t, "owner", got.Owner.Email, "ada@example.com")
	_, err = web.Check(request(cookie(e.session(func(s *UserSession) { s.Device = "Safari" }).Token)))
	wantErr(t, "left out by a scope", err, gormsessions.ErrNoSession)
}

func TestContext(t *testing.T) {
	e := start(t)
	web := e.web()
	s := e.session()
	_, ok := sessionhttp.FromContext[UserSession](t.Context())
	want(t, "without Handler", ok, false)
	_, err := sessionhttp.Load[UserSession](t.Context())
	if err == nil || errors.Is(err, gormsessions.ErrNoSession) {
		t.Errorf("without Handler: got %v, want a failure", err)
	}
	ctx := sessionhttp.NewContext(t.Context(), s)
	got, ok := sessionhttp.FromContext[UserSession](ctx)
	want(t, "NewContext", ok && got == s, true)
	_, ok = sessionhttp.FromContext[APIKey](ctx)
	want(t, "another kind", ok, false)
	_, err = sessionhttp.Load[UserSession](sessionhttp.NewContext[UserSession](t.Context(), nil))
	wantErr(t, "NewContext of nil", err, gormsessions.ErrNoSession)

	// A session in the context is no credential.
	_, err = web.Check(request().WithContext(ctx))
	wantErr(t, "Check", err, gormsessions.ErrNoSession)
	rec := httptest.NewRecorder()
	web.Require(hello).ServeHTTP(rec, request().WithContext(ctx))
	want(t, "Require", rec.Code, http.StatusUnauthorized)

	// Behind Require, FromContext gives the session that Require saw.
	other := e.session(func(s *UserSession) { s.Device = "other" })
	inner := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		web.Require(hello).ServeHTTP(w, r.WithContext(sessionhttp.NewContext(r.Context(), s)))
	})
	want(t, "nested", body(serve(web.Handler(inner), cookie(other.Token))), "hello, other")

	// A request within the request, as of a batch, stands for itself.
	batch := web.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = sessionhttp.FromContext[UserSession](r.Context())
		for _, c := range []struct {
			edits  []edit
			device string
			err    error
		}{
			{[]edit{cookie(s.Token)}, "Firefox", nil},
			{[]edit{cookie(other.Token)}, "other", nil},
			{[]edit{cookie(s.Token), cookie(other.Token)}, "", sessionhttp.ErrBadRequest},
			{[]edit{cookie("x")}, "", gormsessions.ErrNoSession},
			{nil, "", gormsessions.ErrNoSession},
		} {
			part := request(c.edits...).WithContext(r.Context())
			got, err := web.Check(part)
			wantErr(t, "part", err, c.err)
			rec := httptest.NewRecorder()
			web.Require(hello).ServeHTTP(rec, part)
			want(t, "part", rec.Code == 200, c.err == nil)
			if c.err == nil {
				want(t, "part", got.Device, c.device)
				want(t, "part", rec.Body.String(), "hello, "+c.device)
			}
		}
	}))
	serve(batch, cookie(s.Token))

	// Two Webs of one kind, one within the other.
	api := newWeb(t, e.sessions, e.config(sessionhttp.Bearer()))
	both := web.Handler(api.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := web.Check(r)
		must(t, err)
		_, err = api.Check(r)
		wantErr(t, "the inner one", err, gormsessions.ErrNoSession)
		web.Require(hello).ServeHTTP(w, r)
	})))
	want(t, "two Webs", body(serve(both, cookie(s.Token))), "hello, Firefox")
}

// TestOneLoad: a request asks the database once, however many goroutines ask, and
// whatever they do to the headers meanwhile.
func TestOneLoad(t *testing.T) {
	e := start(t)
	web := e.web()
	s := e.session()
	must(t, e.sessions.Extend(t.Context(), s))
	handler := web.Handler(web.Require(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { hello(w, r) })))
	before := e.queries.Load()
	want(t, "body", body(serve(handler, cookie(s.Token))), "hello, Firefox")
	want(t, "queries", e.queries.Load()-before, 1)

	parallel := web.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				// One part of the work is cancelled; the others go on.
				ctx, cancel := context.WithCancel(r.Context())
				cancel()
				if _, ok := sessionhttp.FromContext[UserSession](ctx); !ok {
					t.Error("no session")
				}
			})
		}
		for i := range 100 {
			w.Header().Set(fmt.Sprint("X-", i), "headers are this goroutine's alone")
		}
		wg.Wait()
	}))
	before = e.queries.Load()
	wantPrivate(t, serve(parallel, cookie(s.Token)), "Cookie")
	want(t, "queries", e.queries.Load()-before, 1)
}

// TestLate: whoever asks when the response is written still gets the right answer.
func TestLate(t *testing.T) {
	e := start(t)
	web := e.web()
	s := e.session()
	late := make(chan bool, 1)
	done := make(chan struct{})
	res := serve(web.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "written, ")
		hello(w, r)
		go func() {
			<-done
			_, ok := sessionhttp.FromContext[UserSession](r.Context())
			late <- ok
		}()
	})), cookie(s.Token))
	want(t, "body", body(res), "written, hello, Firefox")
	want(t, "Cache-Control", res.Header.Get("Cache-Control"), "")
	close(done)
	want(t, "after the handler", <-late, true)
}

// TestTimeout: http.TimeoutHandler answers while its handler still asks for the
// session, in another goroutine. The two must not meet in the map of headers.
func TestTimeout(t *testing.T) {
	e := start(t)
	asked, answered := make(chan struct{}), make(chan struct{})
	web := e.web(func(c *sessionhttp.Config) {
		c.Scopes = []gormsessions.Scope{func(db *gorm.DB) *gorm.DB { close(asked); <-answered; return db }}
	})
	s, finished := e.session(), make(chan bool)
	ctx, cancel := context.WithCancel(t.Context())
	slow := http.TimeoutHandler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, ok := sessionhttp.FromContext[UserSession](r.Context())
		finished <- ok
	}), time.Hour, "too slow")
	rec := httptest.NewRecorder()
	go func() { <-asked; cancel() }()
	web.Handler(slow).ServeHTTP(rec, request(cookie(s.Token)).WithContext(ctx))
	want(t, "status", rec.Code, http.StatusServiceUnavailable)
	close(answered)
	want(t, "a session for a request that is gone", <-finished, false)
}

// TestR41Parallel: nobody sees the session of another.
func TestR41Parallel(t *testing.T) {
	const users, requests, workers = 100, 10_000, 16
	e := start(t)
	web := e.web(func(c *sessionhttp.Config) { c.Scopes = []gormsessions.Scope{gormsessions.WithOwner} })
	api := newWeb(t, e.keys, e.config(sessionhttp.Bearer()))
	group, err := sessionhttp.Any(web, api)
	must(t, err)
	server := httptest.NewServer(group.Require(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if k, ok := sessionhttp.FromContext[APIKey](r.Context()); ok {
			_, _ = fmt.Fprint(w, "key of ", k.OwnerID)
			return
		}
		s, err := sessionhttp.Load[UserSession](r.Context())
		if err != nil {
			web.Refuse(w, r, err)
			return
		}
		_, _ = fmt.Fprint(w, s.Owner.Email, " on ", s.Device)
	})))
	defer server.Close()

	type visitor struct {
		carry edit
		want  string
	}
	visitors := make([]visitor, users)
	for i := range visitors {
		user := User{Email: fmt.Sprintf("user%d@example.com", i)}
		must(t, e.db.Create(&user).Error)
		if i%10 == 0 {
			k := &APIKey{}
			k.OwnerID = user.ID
			must(t, e.keys.Create(t.Context(), k))
			visitors[i] = visitor{bearer(k.Token), fmt.Sprint("key of ", user.ID)}
			continue
		}
		s := &UserSession{Device: fmt.Sprint("device ", i)}
		s.OwnerID = user.ID
		must(t, e.sessions.Create(t.Context(), s))
		visitors[i] = visitor{cookie(s.Token), user.Email + " on " + s.Device}
	}

	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: workers}}
	defer client.CloseIdleConnections()
	var next, mixed atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for n := next.Add(1); n <= requests; n = next.Add(1) {
				v := visitors[n*7919%users]
				req, err := http.NewRequestWithContext(t.Context(), "GET", server.URL, nil)
				if err != nil {
					t.Error(err)
					return
				}
				v.carry(req)
				res, err := client.Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				if got := body(res); got != v.want {
					mixed.Add(1)
					t.Errorf("got %q, want %q", got, v.want)
				}
				_ = res.Body.Close()
			}
		})
	}
	wg.Wait()
	want(t, "answers of another", mixed.Load(), 0)
	want(t, "failures", e.failures.Load(), 0)
}

func TestReturnTo(t *testing.T) {
	good := []string{"/", "/account", "/a/b/", "/a?b=c&d=https://x.example//y", "/caf%C3%A9", "/a%20b", "/100%25", "/@evil.example", "/a:b", "/files/a%2Fb"}
	for _, s := range append(good, bad...) {
		want(t, s, sessionhttp.ReturnTo(request(target("/sign-in?"+url.Values{"return_to": {s}}.Encode()))) == s, slices.Contains(good, s))
	}
	form := request(target("/sign-in"), method("POST"), with("Content-Type", "application/x-www-form-urlencoded"), func(r *http.Request) {
		r.Body = io.NopCloser(strings.NewReader(url.Values{"return_to": {"/from-the-form"}}.Encode()))
	})
	want(t, "form", sessionhttp.ReturnTo(form), "/from-the-form")
	want(t, "none", sessionhttp.ReturnTo(request()), "/")

	t.Run("Naive", func(t *testing.T) {
		// Another host, to the browser, in spite of the slash that it begins with.
		fooled := 0
		for _, s := range bad {
			if strings.HasPrefix(s, "/") && browserLeaves(s) {
				fooled++
			}
		}
		if fooled < 5 {
			t.Errorf("a check for the slash is fooled by %d, want more", fooled)
		}
	})
}

// bad would lead elsewhere, in some browser, or where somebody decodes once more.
var bad = []string{
	"", "account", "//", "//evil.example", "///evil.example", `/\evil.example`, `\/evil.example`, `\\evil.example`, "https://evil.example",
	"https:evil.example", "javascript:alert(1)", "/\t/evil.example", "/\n/evil.example", "/\r/evil.example", "\t//evil.example", " //evil.example",
	"/\x00/evil.example", "/%09/evil.example", "/%0d%0aSet-Cookie:a=b", "/%2f", "/%2fevil.example", "/%2Fevil.example", "/%5cevil.example", "/%5Cevil.example",
	"/%252fevil.example", "/%25252fevil.example", "/%255cevil.example", "/%25255cevil.example", "/.//evil.example", "/..//evil.example", "/a/..//evil.example",
	`/a/../\evil.example`, "/a/../%5cevil.example", "/%2e%2e//evil.example", "/%2e%2e%2f%2fevil.example", "/a//b", "/a/./b", "/a/../b", "/é", "/\u2028/evil.example", "/%zz",
	"/%25252525252525252525252525252525", "/" + strings.Repeat("a", 3000), "\u00a0//evil.example", "/%00/evil.example", "?a", "#a", "@evil.example", ":80/a",
}

// browserLeaves reports whether a browser that follows s leaves the site: it drops
// white space, and takes a backslash for a slash (WHATWG URL).
func browserLeaves(s string) bool {
	s = strings.Trim(s, "\x00\x01\x02\x03\x04\x05\x06\x07\x08\t\n\v\f\r\x0e\x0f\x10\x11\x12\x13\x14\x15\x16\x17\x18\x19\x1a\x1b\x1c\x1d\x1e\x1f ")
	s = strings.NewReplacer("\t", "", "\n", "", "\r", "").Replace(s)
	if i := strings.IndexAny(s, "?#"); i >= 0 {
		s = s[:i]
	}
	return !strings.HasPrefix(s, "/") || strings.HasPrefix(strings.ReplaceAll(s, `\`, "/"), "//")
}

func FuzzReturnTo(f *testing.F) {
	for _, s := range bad {
		f.Add(s)
	}
	f.Add("/account?a=b")
	f.Fuzz(func(t *testing.T, s string) {
		got := sessionhttp.ReturnTo(&http.Request{Form: url.Values{"return_to": {s}}})
		if got != s && got != "/" {
			t.Fatalf("%q: got %q", s, got)
		}
		// As it stands, as http.Redirect writes it, and decoded once more.
		rec := httptest.NewRecorder()
		http.Redirect(rec, httptest.NewRequest("POST", "/sign-in", nil), got, http.StatusSeeOther)
		for _, location := range []string{got, rec.Header().Get("Location")} {
			if browserLeaves(location) {
				t.Fatalf("%q: %q leaves the site", s, location)
			}
			if again, err := url.PathUnescape(location); err == nil && browserLeaves(again) {
				t.Fatalf("%q: %q leaves the site, decoded", s, location)
			}
			u, err := url.Parse("https://app.example/sign-in")
			must(t, err)
			u, err = u.Parse(location)
			if err != nil || u.Host != "app.example" || u.Scheme != "https" {
				t.Fatalf("%q: %v, %v", s, u, err)
			}
		}
	})
}
