package sessionhttp

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/gormsessions/gormsessions"
)

// visit is one request under Handler: its session, once that was asked for.
type visit[T any] struct {
	web     *Web[T]
	request *http.Request
	refused error     // what every request for the session gets
	outer   *visit[T] // of another Web or NewContext around this

	loading sync.Mutex // held while the session is looked for
	record
	session *T
	err     error
	loaded  bool
}

type contextKey[T any] struct{}

func innermost[T any](ctx context.Context) *visit[T] {
	v, _ := ctx.Value(contextKey[T]{}).(*visit[T])
	return v
}

// visitOf finds the visit of one Web that the request is of. A request that was
// made within another one, with a credential of its own, is not.
func visitOf[T any](r *http.Request, web *Web[T]) *visit[T] {
	v := innermost[T](r.Context())
	for v != nil && (v.web != web || !web.sameToken(r, v.request)) {
		v = v.outer
	}
	return v
}

// settle says to all visits of the request what its session is from now on.
func (web *Web[T]) settle(r *http.Request, session *T, err error) {
	for v := innermost[T](r.Context()); v != nil; v = v.outer {
		if v.web == web && web.sameToken(r, v.request) {
			v.set(session, err)
		}
	}
}

// FromContext returns the session of a request that came through Handler or
// Require. The first call of a request runs the query, further ones are plain
// reads; they may come from several goroutines.
//
// It also reports false when the database failed (OnError is told of that). A page
// that must not take this for "not signed in" calls [Load]; behind Require it cannot
// happen.
//
// Ask before the response is written. Afterwards the session is still the right
// one, but the headers that forbid caches to keep the page cannot be sent any more,
// nor the cookie of a session that was extended.
func FromContext[T any](ctx context.Context) (*T, bool) {
	session, err := Load[T](ctx)
	return session, err == nil
}

// Load is FromContext with the three outcomes told apart: the session,
// [gormsessions.ErrNoSession] ([ErrBadRequest] is a case of it), or a failure, for
// which [Web.Refuse] answers 503. A context that did not come through Handler,
// Require or NewContext is a failure too.
func Load[T any](ctx context.Context) (*T, error) {
	if v := innermost[T](ctx); v != nil {
		return v.load()
	}
	return nil, errNotHandled
}

// NewContext returns a context from which FromContext and Load give the session; nil
// means that there is none. It is for middleware of other frameworks that has called
// Check, and for tests. Require and Check do not look at it.
func NewContext[T any](ctx context.Context, session *T) context.Context {
	v := &visit[T]{outer: innermost[T](ctx)}
	v.set(session, nil)
	return context.WithValue(ctx, contextKey[T]{}, v)
}

// Handler makes the session of a request available to next, by FromContext, Load and
// Check. It is looked up when it is first asked for, once for each request: a page that
// never asks costs no query. Wrap the whole router in it.
//
// If it was asked for, the response says Cache-Control: no-store and Vary (a
// Cache-Control of next's own that says private stays), and the cookie of a session
// that was extended is renewed. To do that, Handler gives next a ResponseWriter of its
// own. It is an http.Flusher and an http.Hijacker if the original one is, and
// http.ResponseController works with it.
func (web *Web[T]) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w, r, leave := web.enter(w, r, nil)
		defer leave()
		next.ServeHTTP(w, r)
	})
}

// enter begins a visit, or goes on with that of a Handler around this one. A
// refused visit gets that error.
func (web *Web[T]) enter(w http.ResponseWriter, r *http.Request, refused error) (http.ResponseWriter, *http.Request, func()) {
	v, outer, leave := visitOf(r, web), innermost[T](r.Context()), func() {}
	if v != nil && v == outer && refused == nil {
		return w, r, leave
	}
	if v == nil || refused != nil {
		v = &visit[T]{web: web, request: r, refused: refused, outer: outer}
		v.header, v.front = w.Header, &web.front
		w, leave = wrap(w, &v.record), v.write
	}
	return w, r.WithContext(context.WithValue(r.Context(), contextKey[T]{}, v)), leave
}

// load looks for the session, the first time.
func (v *visit[T]) load() (*T, error) {
	if session, err, loaded := v.get(); loaded {
		return session, err
	}
	v.loading.Lock()
	defer v.loading.Unlock()
	if session, err, loaded := v.get(); loaded {
		return session, err
	}
	v.ask()
	session, err := (*T)(nil), v.refused
	if err == nil {
		// By the request's own context: one that is cancelled with a part of
		// the work must not fail the others.
		session, err = v.web.authenticate(v.request)
	}
	if err != nil && !errors.Is(err, gormsessions.ErrNoSession) {
		v.web.report(v.request, err)
		err = reported{err}
	}
	var cookie *http.Cookie
	if err == nil {
		cookie = v.web.renewal(v.request, session)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.loaded { // SignIn and SignOut may have come in between
		v.session, v.err, v.loaded, v.cookie, v.decided = session, err, true, cookie, time.Now()
	}
	return v.session, v.err
}

func (v *visit[T]) get() (*T, error, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.session, v.err, v.loaded
}

// set says what the session is from now on: the response depends on it.
func (v *visit[T]) set(session *T, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.asked = true
	if session == nil && err == nil {
		err = gormsessions.ErrNoSession
	}
	v.session, v.err, v.loaded = session, err, true
	v.cookie = nil // it would undo the one that is set now
}

// reported is a failure that OnError was told of.
type reported struct{ error }

func (e reported) Unwrap() error { return e.error }
