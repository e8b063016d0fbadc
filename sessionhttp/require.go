package sessionhttp

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"reflect"
	"slices"

	"github.com/gormsessions/gormsessions"
)

// Require lets only requests with a session through to next, which finds it with
// FromContext, and answers all others as [Web.Refuse] does. It needs no Handler
// around it, and does no second query under one.
func (web *Web[T]) Require(next http.Handler) http.Handler { return alone(web).Require(next) }

// RequireAbility is Require for sessions that may do something: those whose
// gormsessions.Abilities grant it. Others get 403, and a bearer token's client
// the error insufficient_scope.
//
//	mux.Handle("POST /posts", api.RequireAbility("posts:write")(createPost))
//
// It is called when the program sets up its routes, and panics there if no session could
// ever pass: if T has no field of type gormsessions.Abilities, or several, or if the
// ability is malformed.
func (web *Web[T]) RequireAbility(ability string) func(http.Handler) http.Handler {
	return alone(web).RequireAbility(ability)
}

// Refuse answers a request whose session Check or Load did not give, in fixed
// words:
//
//   - no session: 401 with WWW-Authenticate, and an invalid cookie is deleted; or,
//     with Config.SignInURL and for a browser that opens a page or sends a form, a
//     redirect there;
//   - [ErrBadRequest]: 400;
//   - [gormsessions.ErrRotated], from Rotate: 409, to be tried again;
//   - a failure: 503. OnError is told of it, and the cookie stays.
//
// A bearer token that is unknown, expired or revoked gets the error invalid_token, all
// the same; a malformed one invalid_request.
func (web *Web[T]) Refuse(w http.ResponseWriter, r *http.Request, err error) {
	refuse(w, r, err, []*front{&web.front})
}

// Group is several Webs, for routes that sessions of more than one kind may use.
// Make it with [Any].
type Group struct{ members []Member }

// Member is a [Web] of any T.
type Member interface {
	self() *front
	model() reflect.Type
	hasAbilities() bool
	enter(w http.ResponseWriter, r *http.Request, refused error) (http.ResponseWriter, *http.Request, func())
	granted(r *http.Request) (gormsessions.Abilities, error)
}

// Any accepts the sessions of several Webs: a cookie or an API key, say. A request that
// brings credentials for two of them is refused, also if they are two cookies of
// different names. Handlers learn by FromContext of which kind the session is.
//
// Two Webs of the same T are an error: give one Web several Sources.
func Any(members ...Member) (*Group, error) {
	for i, m := range members {
		if v := reflect.ValueOf(m); !v.IsValid() || v.Kind() == reflect.Pointer && v.IsNil() {
			return nil, fmt.Errorf("sessionhttp: Any: Web %d is nil", i)
		}
		for _, other := range members[:i] {
			if m.model() == other.model() {
				return nil, fmt.Errorf("sessionhttp: Any: two Webs are for %s: give one of them both Sources", m.model())
			}
			for _, source := range m.self().sources {
				if slices.ContainsFunc(other.self().sources, func(s Source) bool { return clash(s, source) }) {
					return nil, fmt.Errorf("sessionhttp: Any: two Webs look for their token in the same %s", source.name())
				}
			}
		}
	}
	if len(members) == 0 {
		return nil, errors.New("sessionhttp: Any: no Web is given, so no request could pass")
	}
	return &Group{slices.Clone(members)}, nil
}

// clash reports whether two sources would find the same token.
func clash(a, b Source) bool {
	c, ok := a.(Cookie)
	d, both := b.(Cookie)
	if ok && both {
		return c.filled().Name == d.filled().Name
	}
	return a.name() == b.name()
}

func alone(m Member) *Group { return &Group{[]Member{m}} }

// Handler is [Web.Handler] for all of the group.
func (g *Group) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w, r, leave := g.enter(w, r)
		defer leave()
		next.ServeHTTP(w, r)
	})
}

// Require is [Web.Require]: a session of one of the group passes.
func (g *Group) Require(next http.Handler) http.Handler { return g.require("", next) }

// RequireAbility is [Web.RequireAbility]. It panics where the model of any of the
// group has no Abilities: its sessions could never pass.
func (g *Group) RequireAbility(ability string) func(http.Handler) http.Handler {
	for _, m := range g.members {
		if !m.hasAbilities() {
			panic(fmt.Sprintf("sessionhttp: RequireAbility(%q): %s does not have one field of type gormsessions.Abilities", ability, m.model()))
		}
	}
	if all := (gormsessions.Abilities{"*"}); !all.Can(ability) {
		panic(fmt.Sprintf("sessionhttp: RequireAbility(%q): this is no ability", ability))
	}
	return func(next http.Handler) http.Handler { return g.require(ability, next) }
}

func (g *Group) require(ability string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w, r, leave := g.enter(w, r)
		defer leave()
		granted, err := g.granted(r)
		switch {
		case err != nil:
			refuse(w, r, err, g.fronts())
			return
		case ability != "" && !granted.Can(ability):
			forbid(w, r, ability, g.fronts())
			return
		}
		for _, f := range g.fronts() {
			f.vary(w.Header()) // it depends on the credentials that were not there, too
		}
		next.ServeHTTP(w, r)
	})
}

func (g *Group) fronts() []*front {
	list := make([]*front, len(g.members))
	for i, m := range g.members {
		list[i] = m.self()
	}
	return list
}

func (g *Group) enter(w http.ResponseWriter, r *http.Request) (http.ResponseWriter, *http.Request, func()) {
	var refused error
	if _, err := g.addressed(r); errors.Is(err, ErrBadRequest) {
		refused = err
	}
	leave := func() {}
	for _, m := range g.members {
		var one func()
		w, r, one = m.enter(w, r, refused)
		leave = after(one, leave)
	}
	return w, r, leave
}

func after(first, then func()) func() {
	return func() { defer then(); first() }
}

// addressed is the one of the group that the request brings a credential for.
func (g *Group) addressed(r *http.Request) (Member, error) {
	if len(g.members) == 1 {
		return g.members[0], nil
	}
	var found Member
	for _, m := range g.members {
		switch {
		case !m.self().brings(r):
		case found != nil:
			return nil, ErrBadRequest
		default:
			found = m
		}
	}
	if found == nil {
		return nil, gormsessions.ErrNoSession
	}
	return found, nil
}

func (g *Group) granted(r *http.Request) (gormsessions.Abilities, error) {
	m, err := g.addressed(r)
	if err != nil {
		return nil, err
	}
	return m.granted(r)
}

func (web *Web[T]) self() *front { return &web.front }

func (web *Web[T]) model() reflect.Type { return reflect.TypeFor[T]() }

func (web *Web[T]) hasAbilities() bool { return web.abilities != nil }

// granted is what the request's session may do.
func (web *Web[T]) granted(r *http.Request) (gormsessions.Abilities, error) {
	session, err := web.Check(r)
	if err != nil || web.abilities == nil {
		return nil, err
	}
	field, err := reflect.ValueOf(session).Elem().FieldByIndexErr(web.abilities)
	if err != nil {
		return nil, nil // they stand in an embedded pointer that is nil: none
	}
	return field.Interface().(gormsessions.Abilities), nil
}

func refuse(w http.ResponseWriter, r *http.Request, err error, fronts []*front) {
	for _, f := range fronts {
		f.mark(w.Header())
	}
	switch {
	case errors.Is(err, ErrBadRequest):
		challenge(w, r, fronts, `error="invalid_request"`)
		answer(w, http.StatusBadRequest)
	case errors.Is(err, gormsessions.ErrRotated):
		answer(w, http.StatusConflict) // signed in, and the new cookie is on its way
	case errors.Is(err, gormsessions.ErrNoSession):
		for _, f := range fronts {
			if f.cookie != nil && f.uses(r, *f.cookie) {
				setCookie(w.Header(), f.cookie.deletion())
			}
		}
		if to := signInURL(r, fronts); to != "" {
			http.Redirect(w, r, to, http.StatusSeeOther)
			return
		}
		challenge(w, r, fronts, "")
		answer(w, http.StatusUnauthorized)
	default:
		if told := (reported{}); !errors.As(err, &told) {
			fronts[0].report(r, err)
		}
		answer(w, http.StatusServiceUnavailable)
	}
}

// challenge says how to authenticate. Only a bearer's has an error: with none
// given it is invalid_token, if there was one. (RFC 6750 §3.1: without a
// credential no code.)
func challenge(w http.ResponseWriter, r *http.Request, fronts []*front, bad string) {
	for _, f := range fronts {
		for _, source := range f.sources {
			_, bearer := source.(bearer)
			code := bad
			switch {
			case bad != "" && !bearer:
				continue
			case bad == "" && f.uses(r, source):
				code = `error="invalid_token"`
			}
			w.Header().Add("WWW-Authenticate", source.challenge(f.realm, code))
		}
	}
}

// forbid answers a session that may not do something.
func forbid(w http.ResponseWriter, r *http.Request, ability string, fronts []*front) {
	for _, f := range fronts {
		f.mark(w.Header())
		for _, source := range f.sources {
			if _, bearer := source.(bearer); bearer && f.uses(r, source) {
				w.Header().Add("WWW-Authenticate", source.challenge(f.realm, `error="insufficient_scope", scope="`+ability+`"`))
			}
		}
	}
	answer(w, http.StatusForbidden)
}

// answer says no more than its status.
func answer(w http.ResponseWriter, status int) { http.Error(w, http.StatusText(status), status) }

// uses reports whether the request brings a credential in that source.
func (f *front) uses(r *http.Request, source Source) bool {
	tokens, err := source.tokens(r)
	return err != nil || len(tokens) > 0
}

// signInURL is where to send a browser that opens a page, or empty.
func signInURL(r *http.Request, fronts []*front) string {
	i := slices.IndexFunc(fronts, func(f *front) bool { return f.signIn != "" })
	if i < 0 || !opensPage(r) {
		return ""
	}
	for _, f := range fronts {
		for _, source := range f.sources {
			if _, cookie := source.(Cookie); !cookie && f.uses(r, source) {
				return "" // a client that sends a key
			}
		}
	}
	target, err := url.Parse(fronts[i].signIn)
	if err != nil || pathPart(pathOf(r)) == target.EscapedPath() {
		return "" // the sign-in page itself: it would go round for ever
	}
	if back := wayBack(r); isLocal(back) && back != "/" && pathPart(back) != target.EscapedPath() {
		query := target.Query()
		query.Set(returnTo, back)
		target.RawQuery = query.Encode()
	}
	return target.String()
}

// opensPage reports whether the answer is shown to a person, and not given to a
// script, which would follow the redirect and take the sign-in page for its data.
func opensPage(r *http.Request) bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodPost:
	default:
		return false
	}
	mode := r.Header.Get("Sec-Fetch-Mode")
	return (mode == "" || mode == "navigate") && acceptsHTML(r)
}

// wayBack is the page to show after the sign-in: the one that was asked for, or
// the one that the form stands on, for where a form goes is often no page.
func wayBack(r *http.Request) string {
	if r.Method != http.MethodPost {
		return pathOf(r)
	}
	if u, err := url.Parse(r.Referer()); err == nil && u.Host == r.Host {
		return u.RequestURI()
	}
	return ""
}
