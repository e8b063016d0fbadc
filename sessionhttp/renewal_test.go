package sessionhttp_test

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gormsessions/gormsessions"
	"github.com/gormsessions/gormsessions/sessionhttp"
)

// A response that is slow must not bring back a cookie that was replaced meanwhile.
func TestRenewalComesLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := start(t)
		web := e.web()
		for _, slow := range []time.Duration{time.Second, 3 * time.Second} {
			s := e.session()
			e.clock.Advance(time.Second)
			res := serve(web.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _ = sessionhttp.FromContext[UserSession](r.Context()) // its first use: renewed
				<-time.After(slow)                                       // the bubble's clock jumps
				_, _ = w.Write([]byte("done"))
			})), cookie(s.Token))
			want(t, slow.String()+": cookies", len(res.Cookies()), map[bool]int{true: 1}[slow < 2*time.Second])
		}
	})
}

// Nor does it take the place of a cookie that the handler has set.
func TestRenewalBesideAnotherCookie(t *testing.T) {
	e := start(t)
	web, other := e.web(), e.web(func(c *sessionhttp.Config) { c.Scopes = []gormsessions.Scope{gormsessions.WithOwner} })
	s := e.session()
	e.clock.Advance(time.Second)
	var token gormsessions.Token
	res := serve(web.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = sessionhttp.FromContext[UserSession](r.Context())
		other.Require(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			got, _ := sessionhttp.FromContext[UserSession](r.Context())
			must(t, other.Reauthenticate(w, r, got))
			token = got.Token
		})).ServeHTTP(w, r)
	})), cookie(s.Token))
	want(t, "cookie", set(t, res, sessionhttp.DefaultCookieName).Value, string(token))
}

// Who has a token that was rotated away gets no new one by a value loaded since.
func TestRotateByAReloadedValue(t *testing.T) {
	e := start(t)
	web := e.web()
	s := e.session()
	old := s.Token
	must(t, e.sessions.Rotate(t.Context(), s))
	reloaded, err := e.sessions.Get(t.Context(), gormsessions.WithID(s.ID))
	must(t, err)
	rec := httptest.NewRecorder()
	wantErr(t, "Rotate", web.Rotate(rec, request(cookie(old)), reloaded), gormsessions.ErrRotated)
	want(t, "cookies", len(rec.Result().Cookies()), 0)
	must(t, web.Rotate(rec, request(cookie(s.Token)), s))
}

// A response with a new token is never one for caches.
func TestSignInIsNeverCached(t *testing.T) {
	e := start(t)
	web := e.web()
	res := serve(web.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s := &UserSession{}
		s.OwnerID = e.user.ID
		must(t, web.SignIn(w, r, s))
		w.Header().Set("Cache-Control", "public, max-age=600")
		w.Header().Del("Vary")
	})))
	wantPrivate(t, res, "Cookie")
}

// secretive has a field of that type that is no column.
type secretive struct {
	gormsessions.Session[User, uint]
	cached gormsessions.Abilities
}

func TestAbilitiesThatAreNoColumn(t *testing.T) {
	e := start(t)
	sessions := gormsessions.New[secretive](gormsessions.Config{})
	must(t, e.db.Use(sessions))
	web := newWeb(t, sessions, e.config())
	s := &secretive{cached: gormsessions.Abilities{"*"}}
	s.OwnerID = e.user.ID
	must(t, sessions.Create(t.Context(), s))
	res := serve(web.Require(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})), cookie(s.Token))
	want(t, "Require", res.StatusCode, http.StatusOK)
	defer func() { want(t, "RequireAbility panics", recover() != nil, true) }()
	web.RequireAbility("posts:write")
}

// noFlusher cannot flush.
type noFlusher struct{ http.ResponseWriter }

func TestFlushThatIsNotSupported(t *testing.T) {
	e := start(t)
	web := e.web()
	rec := httptest.NewRecorder()
	web.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		wantErr(t, "Flush", http.NewResponseController(w).Flush(), http.ErrNotSupported)
		s := &UserSession{}
		s.OwnerID = e.user.ID
		must(t, web.SignIn(w, r, s)) // nothing was written
	})).ServeHTTP(noFlusher{rec}, request())
	set(t, rec.Result(), sessionhttp.DefaultCookieName)
}

func TestMalformedDuplicate(t *testing.T) {
	e := start(t)
	web := e.web()
	s := e.session()
	r := request()
	r.Header.Set("Cookie", sessionhttp.DefaultCookieName+"="+string(s.Token)+"; "+sessionhttp.DefaultCookieName+`=a"b`)
	_, err := web.Check(r)
	wantErr(t, "two, one malformed", err, sessionhttp.ErrBadRequest)
}
