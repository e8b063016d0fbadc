// Package sessionhttp carries the sessions of gormsessions over HTTP: in a
// browser's cookie, a bearer token or an API key's header.
//
//	web, err := sessionhttp.New(sessions, sessionhttp.Config{Scopes: []gormsessions.Scope{gormsessions.WithOwner}})
//
//	mux.Handle("/account", web.Require(account)) // 401, or a redirect to the sign-in page
//	http.ListenAndServe(addr, web.Handler(mux))  // loads the session where it is asked for
//
//	err = web.SignIn(w, r, &s)        // a new session each time, and its cookie
//	err = web.SignOut(w, r)           // revoked before the response is written
//	err = web.Reauthenticate(w, r, s) // after a new proof: the same session, a new token
//
//	s, ok := sessionhttp.FromContext[UserSession](r.Context())
//	s, err := sessionhttp.Load[UserSession](r.Context()) // tells "not signed in" from a failure
//
// It needs nothing but net/http. Under a framework, wrap the whole router in
// [Web.Handler], or call [Web.Check] in a middleware of the framework's own.
//
// A cookie comes along with requests that other sites start. Protect what
// changes something, sign-in included, with [http.CrossOriginProtection].
package sessionhttp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/gormsessions/gormsessions"
)

// Config says how sessions travel. Its zero value is a good default for pages:
// the cookie __Host-session.
type Config struct {
	// Sources are where the token of a request is looked for. A request with
	// two different ones is refused. Default: Cookie{}.
	Sources []Source

	// Scopes are passed to Authenticate: WithOwner loads the owner in the same
	// query and leaves out those who are soft-deleted. A session that they leave
	// out is no session here, and the 401 deletes its cookie. So do not use them to
	// keep some people out of a part of the site: its handlers do that. Default:
	// none.
	Scopes []gormsessions.Scope

	// SignInURL is the path of the page where people sign in. Require redirects
	// there when a browser opens a page or sends a form, and adds the way back for
	// [ReturnTo]: the page, or the one that the form is on. Default: none, Require
	// answers 401 to everybody.
	SignInURL string

	// Realm names what is protected in the WWW-Authenticate header of a 401.
	// Default: "sessions".
	Realm string

	// OnError is told of failures, mostly the database's, with the details that the
	// client is not given: once for each request, and not if the client has gone. It
	// may be called from several goroutines. Default: they are logged by
	// [slog.ErrorContext].
	OnError func(*http.Request, error)

	// Now is the clock that says whether a session was extended just now, so that
	// its cookie has to be renewed. If gorm.Config.NowFunc is set, set this to the
	// same. Default: time.Now.
	Now func() time.Time
}

// These are the errors that callers tell apart, beside those of gormsessions.
var (
	// ErrBadRequest: the request brings two different credentials, two cookies of
	// the name that differ, or a malformed bearer token. It matches
	// gormsessions.ErrNoSession, so that code which checks for that is right without
	// it. From Check and Load; from SignIn and SignOut only for more than eight
	// credentials.
	ErrBadRequest error = badRequest{}

	// ErrWritten: the response was already written, so it cannot carry the cookie;
	// nothing was done. From SignIn, Rotate and Reauthenticate, as far as they can
	// know: under Handler or Require, and for a ResponseWriter with a method Written,
	// such as gin's.
	ErrWritten = errors.New("sessionhttp: the response was already written: call this before")

	errNotHandled = errors.New("sessionhttp: the request did not come through Handler, Require or NewContext")
	errNoCookie   = errors.New("sessionhttp: there is no Cookie among Config.Sources to put the session into")
	errNilSession = errors.New("sessionhttp: the session is nil")
	errNotCurrent = errors.New("the session is not the request's: call the plugin's own method")
)

type badRequest struct{}

func (badRequest) Error() string {
	return "sessionhttp: the request's credentials are malformed, or there are several"
}
func (badRequest) Unwrap() error { return gormsessions.ErrNoSession }

// Web carries the sessions of one plugin over HTTP. It is safe for concurrent
// use. Make it with [New]; its zero value is of no use.
type Web[T any] struct {
	front
	sessions  *gormsessions.Plugin[T]
	scopes    []gormsessions.Scope
	abilities []int // the index of T's one field of that type; nil: there is none, or several
}

// front is what a Web is for requests that brought no session yet, of whatever T.
type front struct {
	sources []Source
	cookie  *Cookie // the one among them; nil: none
	realm   string
	signIn  string
	onError func(*http.Request, error)
	now     func() time.Time
}

// New makes a Web for the sessions of a plugin. A Config that is wrong or
// insecure is an error, which names the field. The plugin may be registered
// later; until then every request that brings a token fails.
func New[T any](sessions *gormsessions.Plugin[T], config Config) (*Web[T], error) {
	if sessions == nil {
		return nil, errors.New("sessionhttp: the plugin is nil")
	}
	front, err := newFront(config)
	if err != nil {
		return nil, err
	}
	return &Web[T]{front, sessions, slices.Clone(config.Scopes), abilitiesOf(reflect.TypeFor[T]())}, nil
}

func newFront(c Config) (front, error) {
	f := front{sources: slices.Clone(c.Sources), realm: c.Realm, signIn: c.SignInURL, onError: c.OnError, now: c.Now}
	bad := func(field, format string, args ...any) (front, error) {
		return front{}, fmt.Errorf("sessionhttp: Config.%s: %s", field, fmt.Sprintf(format, args...))
	}
	if len(f.sources) == 0 {
		f.sources = []Source{Cookie{}}
	}
	seen := make(map[string]bool)
	for i, source := range f.sources {
		field := fmt.Sprintf("Sources[%d]", i)
		if p, ok := source.(*Cookie); ok && p != nil {
			source, f.sources[i] = *p, *p
		} else if ok || source == nil {
			return bad(field, "it is nil")
		}
		switch source.(type) {
		case Cookie, bearer, header:
		default:
			return bad(field, "a %T is none of this package's", source)
		}
		if err := source.validate(); err != nil {
			return bad(field, "%v", err)
		}
		if seen[source.name()] {
			return bad(field, "%s stands there twice", source.name())
		}
		seen[source.name()] = true
		if cookie, ok := source.(Cookie); ok {
			f.cookie = &cookie
		}
	}
	for i, scope := range c.Scopes {
		if scope == nil {
			return bad(fmt.Sprintf("Scopes[%d]", i), "it is nil")
		}
	}
	if f.signIn != "" && f.cookie == nil {
		return bad("SignInURL", "there is no Cookie among the Sources: nobody could be signed in there")
	}
	if f.signIn != "" && !isLocal(f.signIn) {
		return bad("SignInURL", "%q is no path of this site: it begins with one slash", f.signIn)
	}
	if f.realm == "" {
		f.realm = "sessions"
	}
	if strings.ContainsFunc(f.realm, func(r rune) bool { return r < ' ' || r > '~' || r == '"' || r == '\\' }) {
		return bad("Realm", "%q: only visible ASCII without quotes and backslashes is allowed", f.realm)
	}
	if f.now == nil {
		f.now = time.Now
	}
	if f.onError == nil {
		f.onError = func(r *http.Request, err error) {
			slog.ErrorContext(r.Context(), "the session of a request could not be told", "error", err)
		}
	}
	return f, nil
}

// Check returns the session of a request: [gormsessions.Plugin.Authenticate] with
// the token that it brings. The error is [gormsessions.ErrNoSession] for a request
// without a session ([ErrBadRequest] is a case of it), and anything else is a
// failure: that is not "not signed in". [Web.Refuse] answers all three.
//
// Under Handler and Require it shares their one query. Elsewhere each call runs
// its own, and the caller sets the headers of the response (Cache-Control: no-store,
// Vary). Nor is a cookie renewed there: it ends at the expiry that the session had at
// sign-in, however often it was extended. Check reads no more of a request than its
// headers and context.
func (web *Web[T]) Check(r *http.Request) (*T, error) {
	if v := visitOf(r, web); v != nil {
		return v.load()
	}
	return web.authenticate(r)
}

func (web *Web[T]) authenticate(r *http.Request) (*T, error) {
	token, err := web.token(r)
	if err != nil {
		return nil, err
	}
	return web.sessions.Authenticate(r.Context(), token, web.scopes...)
}

// SignIn creates the session, after the person has proved who they are, and puts
// it into the cookie. It is always a new one: a session that has an ID or a Token
// already is [gormsessions.ErrUnsafeCreate]. The sessions that the client brought
// are revoked first, with the reason "signed in again". From then on FromContext gives
// the new one.
//
// The cookie lives as long as the session, at most the 400 days that browsers
// allow, or until the browser is closed: see [Rememberer].
//
// Errors: those of [gormsessions.Plugin.Create], [ErrWritten], [ErrBadRequest], and
// failures. Then there is no new session and no new cookie; the sessions that the client
// brought may have been revoked already, or not.
func (web *Web[T]) SignIn(w http.ResponseWriter, r *http.Request, session *T) error {
	switch {
	case web.cookie == nil:
		return errNoCookie
	case session == nil:
		return errNilSession
	case web.written(w, r):
		return ErrWritten
	}
	base := baseOf(session)
	if base.Token != "" || base.ID != [16]byte{} || len(base.TokenDigest) != 0 {
		return fmt.Errorf("sessionhttp: sign in: %w: its ID and Token are made here: leave them empty", gormsessions.ErrUnsafeCreate)
	}
	// The old session goes first: it would count towards the owner's limit.
	if err := web.revoke(r.Context(), r, "signed in again"); err != nil {
		return fmt.Errorf("sessionhttp: sign in: %w", err)
	}
	if err := web.sessions.Create(r.Context(), session); err != nil {
		return fmt.Errorf("sessionhttp: sign in: %w", err)
	}
	setCookie(w.Header(), web.cookieFor(session, string(base.Token)))
	web.become(w, r, session)
	return nil
}

// Rotate gives the request's session a new token, by [gormsessions.Plugin.Rotate],
// and the cookie too: do it when the person gains rights. The token before works a
// little longer, for requests that are under way. A client that sent it in a
// header has to be told the new one, session.Token. Like SignIn, it takes no part in a
// transaction of yours: call it before that, or once it is committed.
//
// Errors: [gormsessions.ErrRotated] if another request was first (its answer carries
// the new cookie); [gormsessions.ErrNoSession] if the session has ended, or the request
// brings none; [ErrWritten]; and failures, among them a session that is not the
// request's. The cookie then stays as it is.
func (web *Web[T]) Rotate(w http.ResponseWriter, r *http.Request, session *T) error {
	return web.rotate(w, r, session, "rotate", web.sessions.Rotate)
}

// Reauthenticate notes that the person has proved again who they are, by
// [gormsessions.Plugin.Reauthenticate]: IsFresh is true from now, and the session
// is rotated. Call it after they did, before a dangerous action. Errors: those of
// [Web.Rotate].
func (web *Web[T]) Reauthenticate(w http.ResponseWriter, r *http.Request, session *T) error {
	return web.rotate(w, r, session, "reauthenticate", web.sessions.Reauthenticate)
}

func (web *Web[T]) rotate(w http.ResponseWriter, r *http.Request, session *T, op string, rotate func(context.Context, *T) error) error {
	switch {
	case session == nil:
		return errNilSession
	case web.written(w, r):
		return ErrWritten // after it the client could never learn the new token
	}
	current, err := web.Check(r)
	switch {
	case err != nil:
	case baseOf(current).ID != baseOf(session).ID:
		err = errNotCurrent // its token in the cookie would make the client somebody else
	case !bytes.Equal(baseOf(current).TokenDigest, baseOf(session).TokenDigest):
		// The request's token was rotated away: who has it must get no new one,
		// whatever value the handler has loaded since.
		err = gormsessions.ErrRotated
	}
	if err == nil {
		err = rotate(r.Context(), session)
	}
	if err != nil {
		return fmt.Errorf("sessionhttp: %s: %w", op, err)
	}
	if web.cookie != nil && web.uses(r, *web.cookie) {
		setCookie(w.Header(), web.cookieFor(session, string(baseOf(session).Token)))
	}
	web.become(w, r, session)
	return nil
}

// SignOut revokes the sessions that the client brought, with the reason "signed
// out", and deletes the cookie. It has done so when it returns, before the response is
// written, and does it also when the client has gone meanwhile (for at most 10 seconds).
// To sign out twice does no harm.
//
// An error is a failure of the database, or [ErrBadRequest]: the person may still be
// signed in then, and keeps the cookie. Say so, and let them try again.
func (web *Web[T]) SignOut(w http.ResponseWriter, r *http.Request) error {
	// Who signs out and closes the browser at once has signed out.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), signOutTime)
	defer cancel()
	if err := web.revoke(ctx, r, "signed out"); err != nil {
		return fmt.Errorf("sessionhttp: sign out: %w", err)
	}
	web.mark(w.Header())
	if web.cookie != nil {
		setCookie(w.Header(), web.cookie.deletion())
	}
	return nil
}

const signOutTime = 10 * time.Second

// revoke ends the sessions that the client brought.
func (web *Web[T]) revoke(ctx context.Context, r *http.Request, reason string) error {
	brought, _ := web.credentials(r)
	if len(brought) > maxBrought {
		return ErrBadRequest
	}
	for _, c := range brought {
		n, err := web.sessions.Revoke(ctx, reason, gormsessions.WithToken(c.token))
		if err == nil && n == 0 {
			err = web.revokeRotated(ctx, reason, c.token)
		}
		if err != nil {
			return err
		}
	}
	web.settle(r, nil, gormsessions.ErrNoSession)
	return nil
}

// revokeRotated ends the session of a token that Rotate has just replaced: it still
// works for a while.
func (web *Web[T]) revokeRotated(ctx context.Context, reason, token string) error {
	session, err := web.sessions.Authenticate(ctx, token)
	if errors.Is(err, gormsessions.ErrNoSession) {
		return nil
	}
	if err == nil {
		_, err = web.sessions.Revoke(ctx, reason, gormsessions.WithID(baseOf(session).ID))
	}
	return err
}

// maxBrought is how many sessions one request may end: each costs a statement.
const maxBrought = 8

// become makes the session the request's own.
func (web *Web[T]) become(w http.ResponseWriter, r *http.Request, session *T) {
	web.mark(w.Header())
	web.settle(r, session, nil)
}

// written reports whether the response was written, where that can be told.
func (web *Web[T]) written(w http.ResponseWriter, r *http.Request) bool {
	if v := visitOf(r, web); v != nil && v.isWritten() {
		return true
	}
	known, ok := w.(interface{ Written() bool })
	return ok && known.Written()
}

// Rememberer is what a session's model implements to have cookies that end with
// the browser, for people who leave "remember me" unchecked:
//
//	type UserSession struct {
//		gormsessions.Session[User, uint]
//		Remember bool
//	}
//
//	func (s *UserSession) RememberMe() bool { return s.Remember }
//
// The session itself lives on as its times say: give it a short IdleTimeout too,
// for browsers that restore such cookies. Default: all cookies live as long as
// their session.
type Rememberer interface {
	RememberMe() bool
}

// cookieFor is the cookie that lives as long as the session.
func (web *Web[T]) cookieFor(session *T, token string) *http.Cookie {
	if r, ok := any(session).(Rememberer); ok && !r.RememberMe() {
		return web.cookie.with(token, 0)
	}
	life, base := longestLife, baseOf(session)
	if base.ExpiresAt != nil {
		// Both are times of the database's clock, and the session was written
		// just now: so the difference is right whatever the machine's says.
		life = min(life, max(base.ExpiresAt.Sub(base.UpdatedAt), time.Second))
	}
	return web.cookie.with(token, int((life+time.Second-1)/time.Second))
}

// longestLife is what browsers cut a cookie's life to.
const longestLife = 400 * 24 * time.Hour

// renewal is the cookie to send along where the session was written just now,
// which mostly means: was extended.
func (web *Web[T]) renewal(r *http.Request, session *T) *http.Cookie {
	if web.cookie == nil {
		return nil
	}
	tokens, err := web.cookie.tokens(r)
	if err != nil || len(tokens) != 1 || tokens[0] == "" {
		return nil // it came by a header
	}
	base := baseOf(session)
	if !base.UpdatedAt.After(base.CreatedAt) || web.now().Sub(base.UpdatedAt).Abs() > justNow {
		return nil
	}
	c := web.cookieFor(session, tokens[0])
	if c.MaxAge == 0 {
		return nil
	}
	// A token that Rotate has just replaced must not replace the new one.
	n, err := web.sessions.Count(r.Context(), gormsessions.WithToken(tokens[0]))
	if err != nil || n != 1 {
		return nil
	}
	return c
}

// justNow leaves room for the query, and for a NowFunc that rounds to seconds.
// Longer would let more late responses set a cookie again that was replaced
// meanwhile.
const justNow = 2 * time.Second

func baseOf[T any](session *T) *gormsessions.Base {
	return any(session).(gormsessions.Model).SessionBase() // T of a Plugin is one
}

// abilitiesOf finds the one field of type gormsessions.Abilities, embedded or not.
func abilitiesOf(model reflect.Type) (index []int) {
	for _, f := range reflect.VisibleFields(model) {
		if f.Type != reflect.TypeFor[gormsessions.Abilities]() || !f.IsExported() || f.Tag.Get("gorm") == "-" {
			continue // or it is no column
		}
		if index != nil {
			return nil
		}
		index = f.Index
	}
	return index
}

// report tells OnError of a failure, unless nobody waits for the answer any more.
func (f *front) report(r *http.Request, err error) {
	if !errors.Is(r.Context().Err(), context.Canceled) {
		f.onError(r, err)
	}
}
