package main

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/gormsessions/gormsessions"
	"github.com/gormsessions/gormsessions/sessionhttp"
	"gorm.io/gorm"
)

// User is a person with an account.
type User struct {
	ID        uint
	Email     string `gorm:"not null;size:255;uniqueIndex"`
	Password  string `gorm:"not null;size:255" json:"-"` // see passwords
	CreatedAt time.Time
}

// Device is a browser in which a User is signed in.
type Device struct {
	gormsessions.Session[User, uint]
	Name      string `gorm:"not null;size:60"` // that the person gave it, or empty
	UserAgent string `gorm:"not null;size:255"`
	Address   string `gorm:"not null;size:64"`
}

// Project is what API keys belong to. Each user has one.
type Project struct {
	ID     uint
	UserID uint  `gorm:"not null;uniqueIndex"`
	User   *User `gorm:"constraint:OnDelete:CASCADE"`
	Name   string
}

// APIKey is for programs that work on a Project.
type APIKey struct {
	gormsessions.Session[Project, uint]
	gormsessions.Abilities
	Name string `gorm:"not null;size:60"`
	Hint string `gorm:"not null;size:16"` // how the key begins, to tell it by
}

// The abilities of keys.
const (
	abilityRead  = "project:read"
	abilityWrite = "project:write"
)

const (
	maxDevices = 25 // of a user; one more signs out the one not used for longest
	maxKeys    = 10 // of a project; one more is refused
	retention  = 30 * 24 * time.Hour
)

// site is the whole application.
type site struct {
	options
	db        *gorm.DB
	sessions  *gormsessions.Plugin[Device]
	keys      *gormsessions.Plugin[APIKey]
	web       *sessionhttp.Web[Device]
	api       *sessionhttp.Web[APIKey]
	passwords passwords
	attempts  *throttle
	live      *hub
	views     views
}

// options are what tests set otherwise.
type options struct {
	log            *slog.Logger
	url            string // of the site, for the curl lines
	insecureCookie bool
	iterations     int              // of PBKDF2. Default: what OWASP asks for.
	fresh          time.Duration    // how long a password that was confirmed counts. Default: 10 minutes.
	now            func() time.Time // of the throttle and the charts. Default: time.Now.
}

func newSite(db *gorm.DB, o options) (*site, error) {
	o.iterations = cmp.Or(o.iterations, owaspIterations)
	o.fresh = cmp.Or(o.fresh, 10*time.Minute)
	if o.now == nil {
		o.now = time.Now
	}
	views, err := parseViews(o.now)
	if err != nil {
		return nil, err
	}
	s := &site{
		options:   o,
		db:        db,
		passwords: newPasswords(o.iterations),
		attempts:  newThrottle(o.now),
		live:      newHub(),
		views:     views,
	}

	if err := db.AutoMigrate(&User{}, &Project{}); err != nil {
		return nil, err
	}
	log := gormsessions.LogEvents(o.log) // ids and reasons, never a token
	s.sessions = gormsessions.New[Device](gormsessions.Config{
		AbsoluteTimeout: 30 * 24 * time.Hour,
		TouchInterval:   time.Minute, // "last active" is to look alive
		MaxPerOwner:     maxDevices,
		Retention:       retention, // what the statistics are made of
		OnEvent: func(ctx context.Context, e gormsessions.Event) {
			log(ctx, e)
			s.live.notice(e)
		},
	})
	s.keys = gormsessions.New[APIKey](gormsessions.Config{
		IdleTimeout:   gormsessions.Never,
		TouchInterval: time.Minute,
		Prefix:        "demo",
		MaxPerOwner:   maxKeys,
		OnLimit:       gormsessions.Reject,
		Retention:     retention,
		OnEvent:       log,
	})
	for _, plugin := range []gorm.Plugin{s.sessions, s.keys} {
		if err := db.Use(plugin); err != nil {
			return nil, err
		}
	}

	cookie := sessionhttp.Cookie{}
	if o.insecureCookie {
		cookie = sessionhttp.Cookie{Name: "demo-session", Insecure: true}
	}
	s.web, err = sessionhttp.New(s.sessions, sessionhttp.Config{
		Sources:   []sessionhttp.Source{cookie},
		Scopes:    []gormsessions.Scope{gormsessions.WithOwner},
		SignInURL: "/sign-in",
		Realm:     "demo",
		OnError:   s.report,
	})
	if err != nil {
		return nil, err
	}
	s.api, err = sessionhttp.New(s.keys, sessionhttp.Config{
		Sources: []sessionhttp.Source{sessionhttp.Bearer()},
		Scopes:  []gormsessions.Scope{gormsessions.WithOwner},
		Realm:   "demo",
		OnError: s.report,
	})
	return s, err
}

func (s *site) handler() (http.Handler, error) {
	static, err := staticFiles()
	if err != nil {
		return nil, err
	}
	either, err := sessionhttp.Any(s.web, s.api)
	if err != nil {
		return nil, err
	}

	mux := http.NewServeMux()
	mux.Handle("GET /static/", static)
	mux.Handle("GET /{$}", s.open(s.home))
	mux.Handle("GET /", s.open(s.notFound))

	mux.Handle("GET /sign-up", s.open(s.signUpPage))
	mux.Handle("POST /sign-up", s.open(s.signUp))
	mux.Handle("GET /sign-in", s.open(s.signInPage))
	mux.Handle("POST /sign-in", s.open(s.signIn))
	mux.Handle("POST /sign-out", s.open(s.signOut))

	mux.Handle("GET /account", s.private(s.account))
	mux.Handle("POST /devices/sign-out-others", s.private(s.signOutOthers))
	mux.Handle("POST /devices/sign-out-everywhere", s.private(s.signOutEverywhere))
	mux.Handle("POST /devices/{id}/sign-out", s.private(s.signOutDevice))
	mux.Handle("POST /devices/{id}/name", s.private(s.renameDevice))
	mux.Handle("GET /password", s.private(s.passwordPage))
	mux.Handle("POST /password", s.private(s.changePassword))
	mux.Handle("GET /confirm", s.private(s.confirmPage))
	mux.Handle("POST /confirm", s.private(s.confirm))

	mux.Handle("GET /keys", s.private(s.listKeys))
	mux.Handle("GET /keys/new", s.private(s.newKeyPage))
	mux.Handle("POST /keys", s.private(s.createKey))
	mux.Handle("POST /keys/{id}/revoke", s.private(s.revokeKey))

	mux.Handle("GET /statistics", s.private(s.statistics))
	mux.Handle("GET /live", s.private(s.stream))

	mux.Handle("GET /api/me", either.Require(s.apiHandler(s.me)))
	mux.Handle("GET /api/project", s.api.RequireAbility(abilityRead)(s.apiHandler(s.showProject)))
	mux.Handle("PUT /api/project/name", s.api.RequireAbility(abilityWrite)(s.apiHandler(s.renameProject)))

	// A cookie comes along with what other sites send: those requests end here,
	// before anybody looks at them, sign-in and sign-up included.
	guard := http.NewCrossOriginProtection()
	guard.SetDenyHandler(http.HandlerFunc(s.crossSite))
	return secure(guard.Handler(limited(s.web.Handler(mux)))), nil
}

// secure adds the headers that every response has.
func secure(next http.Handler) http.Handler {
	const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
		"form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		next.ServeHTTP(w, r)
	})
}

// limited keeps bodies to what the forms here need.
func limited(next http.Handler) http.Handler {
	return http.MaxBytesHandler(next, 16<<10)
}

// open is a page for everybody.
func (s *site) open(page func(http.ResponseWriter, *http.Request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := page(w, r); err != nil {
			s.fail(w, r, err)
		}
	})
}

// private is a page for who is signed in. Others are sent to the sign-in page, also
// where the session ends while the page works.
func (s *site) private(page func(http.ResponseWriter, *http.Request, *Device) error) http.Handler {
	return s.open(func(w http.ResponseWriter, r *http.Request) error {
		device, err := current(r)
		if err == nil && device == nil {
			err = gormsessions.ErrNoSession
		}
		if err == nil {
			err = page(w, r, device)
		}
		if errors.Is(err, gormsessions.ErrNoSession) && !errors.Is(err, sessionhttp.ErrBadRequest) {
			s.web.Refuse(w, r, err)
			return nil
		}
		return err
	})
}

// current is the request's session, nil: nobody is signed in. A database that is
// down is an error: nobody is to see the pages for strangers by it.
func current(r *http.Request) (*Device, error) {
	device, err := sessionhttp.Load[Device](r.Context())
	switch {
	case err == nil:
		return device, nil
	case errors.Is(err, sessionhttp.ErrBadRequest):
		return nil, err
	case errors.Is(err, gormsessions.ErrNoSession):
		return nil, nil
	}
	return nil, reported{err}
}

// problem is an error that the person is told of.
type problem struct {
	Status int
	Title  string
	Text   string
}

func (p problem) Error() string { return strings.ToLower(p.Title) }

// reported is an error that is in the log already.
type reported struct{ error }

func (e reported) Unwrap() error { return e.error }

// fail answers a request that could not be served: with the problem, or else with
// 503, for what else fails here is the database.
func (s *site) fail(w http.ResponseWriter, r *http.Request, err error) {
	p := problem{http.StatusServiceUnavailable, "Something is broken here", "It is not you, and nobody was signed out. Please try again in a moment."}
	var device *Device
	switch {
	case errors.As(err, &p):
		// Who is signed in keeps the navigation.
		device, _ = sessionhttp.FromContext[Device](r.Context())
	case errors.As(err, new(*http.MaxBytesError)):
		p = problem{http.StatusRequestEntityTooLarge, "That was too much", "The form holds more than fits."}
	case errors.Is(err, sessionhttp.ErrBadRequest):
		p = problem{http.StatusBadRequest, "Your browser sent two sign-ins", "One of them is not from here. Please delete the cookies of this site, then sign in again."}
	case !errors.As(err, new(reported)):
		s.report(r, err)
	}
	s.views.render(w, p.Status, "problem", view{Title: p.Title, Device: device, Data: p})
}

func (s *site) report(r *http.Request, err error) {
	if r.Context().Err() == nil { // else the client has gone, and that is why
		s.log.ErrorContext(r.Context(), "request failed", "method", r.Method, "path", r.URL.Path, "error", err)
	}
}

func (s *site) notFound(http.ResponseWriter, *http.Request) error { return errNotFound }

var errNotFound = problem{http.StatusNotFound, "There is nothing here", "The link is old, or was mistyped."}

func (s *site) crossSite(w http.ResponseWriter, r *http.Request) {
	s.log.WarnContext(r.Context(), "refused a request from another site", "method", r.Method, "path", r.URL.Path)
	s.fail(w, r, problem{http.StatusForbidden, "That came from another site", "For your safety it was not done. Please go on from here."})
}
