package sessionhttp

import (
	"errors"
	"fmt"
	"net/http"
	"net/textproto"
	"slices"
	"strings"

	"github.com/gormsessions/gormsessions"
)

// Source is where a request may carry a token: a [Cookie], [Bearer] or [Header].
// A token in a URL is never looked at: URLs are logged, and sent on to others.
type Source interface {
	validate() error
	// name is the header that the token stands in, for Vary.
	name() string
	// tokens are those of the request: several where they differ. They are
	// ErrBadRequest where the source is malformed.
	tokens(r *http.Request) ([]string, error)
	// challenge is for WWW-Authenticate; code is of RFC 6750, or empty.
	challenge(realm, code string) string
}

// DefaultCookieName is the name of the zero [Cookie]. Browsers take a cookie
// with this prefix only from the site itself, over TLS, and for all its paths: no
// subdomain or sibling can plant one.
const DefaultCookieName = "__Host-session"

// Cookie is the source for browsers. It is always HttpOnly. Its zero value is the
// safest; the other fields are for sites that need something else. Change Name
// together with Path or Domain: otherwise browsers send the old cookie beside the
// new one, and two that differ are refused.
//
// Browsers take a Secure cookie from http://localhost too, so local development needs
// no TLS; only Safari does not. There, and for other addresses without TLS, set Name
// and Insecure.
type Cookie struct {
	// Name of the cookie. Default: DefaultCookieName.
	Name string

	// Path limits the cookie to a part of the site. It keeps nobody out: pages
	// elsewhere on the site can open that part. Not with the prefix __Host-.
	// Default: "/".
	Path string

	// Domain shares the cookie with all subdomains, and with whoever controls
	// one. Not with the prefix __Host-. Default: none, this host alone.
	Domain string

	// SameSite says which of the requests that other sites start carry the cookie:
	// Lax those that follow a link, Strict none, None all. Default:
	// http.SameSiteLaxMode.
	SameSite http.SameSite

	// Insecure also sends the cookie without TLS, to whoever listens: for local
	// development. Not with the prefixes __Host- and __Secure-. Default: false.
	Insecure bool
}

func (c Cookie) filled() Cookie {
	if c.Name == "" {
		c.Name = DefaultCookieName
	}
	if c.Path == "" {
		c.Path = "/"
	}
	if c.SameSite == 0 || c.SameSite == http.SameSiteDefaultMode {
		c.SameSite = http.SameSiteLaxMode
	}
	return c
}

// with makes the cookie for a token. A maxAge of 0 ends with the browser.
func (c Cookie) with(token string, maxAge int) *http.Cookie {
	c = c.filled()
	return &http.Cookie{Name: c.Name, Value: token, Path: c.Path, Domain: c.Domain, MaxAge: maxAge,
		Secure: !c.Insecure, HttpOnly: true, SameSite: c.SameSite}
}

func (c Cookie) deletion() *http.Cookie { return c.with("", -1) }

func (c Cookie) validate() error {
	c = c.filled()
	bad := func(field, format string, args ...any) error {
		return fmt.Errorf("%s: %s", "Cookie."+field, fmt.Sprintf(format, args...))
	}
	if err := (&http.Cookie{Name: c.Name}).Valid(); err != nil {
		return bad("Name", "%q is no name of a cookie", c.Name)
	}
	if err := (&http.Cookie{Name: c.Name, Path: c.Path}).Valid(); err != nil || c.Path[0] != '/' {
		return bad("Path", "%q is no path: it begins with a slash", c.Path)
	}
	if err := (&http.Cookie{Name: c.Name, Domain: c.Domain}).Valid(); c.Domain != "" && err != nil {
		return bad("Domain", "%q is no domain", c.Domain)
	}
	switch c.SameSite {
	case http.SameSiteLaxMode, http.SameSiteStrictMode, http.SameSiteNoneMode:
	default:
		return bad("SameSite", "%d is none of net/http's", c.SameSite)
	}
	name := strings.ToLower(c.Name) // browsers do not look at the case of a prefix
	host := strings.HasPrefix(name, "__host-")
	switch {
	case host && c.Domain != "":
		return bad("Domain", "a cookie named %s has none: set another Name, with the prefix __Secure-", c.Name)
	case host && c.Path != "/":
		return bad("Path", "a cookie named %s has the path /: set another Name, with the prefix __Secure-", c.Name)
	case c.Insecure && (host || strings.HasPrefix(name, "__secure-") || strings.HasPrefix(name, "__http-")):
		return bad("Insecure", "browsers refuse a cookie named %s without Secure: set another Name", c.Name)
	case c.Insecure && c.SameSite == http.SameSiteNoneMode:
		return bad("Insecure", "browsers refuse SameSite=None without Secure")
	}
	return nil
}

func (Cookie) name() string { return "Cookie" }

func (Cookie) challenge(realm, _ string) string { return `Cookie realm="` + realm + `"` }

func (c Cookie) tokens(r *http.Request) ([]string, error) {
	var list []string
	name := c.filled().Name
	for _, cookie := range r.CookiesNamed(name) {
		list = append(list, cookie.Value)
	}
	// net/http leaves out malformed ones, which others who read the header may not.
	sent := 0
	for _, line := range r.Header["Cookie"] {
		for part := range strings.SplitSeq(line, ";") {
			if key, _, _ := strings.Cut(part, "="); textproto.TrimString(key) == name {
				sent++
			}
		}
	}
	if sent > 1 && sent != len(list) {
		return nil, ErrBadRequest
	}
	return distinct(list), nil
}

// Bearer is the source for API clients: Authorization: Bearer, as in RFC 6750,
// with its challenges. An Authorization of another scheme (Basic, say) is ignored.
func Bearer() Source { return bearer{} }

type bearer struct{}

func (bearer) validate() error { return nil }

func (bearer) name() string { return "Authorization" }

func (bearer) challenge(realm, code string) string {
	if code != "" {
		code = ", " + code
	}
	return `Bearer realm="` + realm + `"` + code
}

func (bearer) tokens(r *http.Request) ([]string, error) {
	lines := r.Header["Authorization"]
	for _, line := range lines {
		scheme, token, _ := strings.Cut(line, " ")
		if !strings.EqualFold(scheme, "Bearer") {
			continue
		}
		token = strings.Trim(token, " ")
		// RFC 6750 calls it b64token.
		body := strings.TrimRight(token, "=")
		if len(lines) > 1 || body == "" || strings.Trim(body, alphanumeric+"-._~+/") != "" {
			return nil, ErrBadRequest
		}
		return []string{token}, nil
	}
	return nil, nil
}

const alphanumeric = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// Header is the source for API clients that send their key in a header of its
// own, as X-Api-Key.
func Header(name string) Source { return header(textproto.CanonicalMIMEHeaderKey(name)) }

type header string

func (h header) validate() error {
	if h == "" || strings.Trim(string(h), alphanumeric+"!#$%&'*+-.^_`|~") != "" {
		return fmt.Errorf("Header: %q is no name of a header", string(h))
	}
	if h == "Authorization" {
		return errors.New("Header: Authorization names a scheme too: use Bearer")
	}
	if h == "Cookie" {
		return errors.New("Header: use Cookie{}")
	}
	return nil
}

func (h header) name() string { return string(h) }

func (h header) challenge(realm, _ string) string { return `ApiKey realm="` + realm + `"` }

func (h header) tokens(r *http.Request) ([]string, error) {
	return distinct(r.Header[string(h)]), nil
}

// distinct leaves each once. Nothing but the empty one is none.
func distinct(list []string) []string {
	list = slices.Compact(slices.Sorted(slices.Values(list)))
	if len(list) == 1 && list[0] == "" {
		return nil
	}
	return list
}

// credential is a token and where it stands.
type credential struct {
	token string
	from  Source
}

// credentials are those that the request brings, each token once.
func (f *front) credentials(r *http.Request) (list []credential, err error) {
	for _, source := range f.sources {
		tokens, malformed := source.tokens(r)
		if malformed != nil {
			err = malformed
		}
		for _, token := range tokens {
			if !slices.ContainsFunc(list, func(c credential) bool { return c.token == token }) {
				list = append(list, credential{token, source})
			}
		}
	}
	return list, err
}

// token is the one that the request brings.
func (f *front) token(r *http.Request) (string, error) {
	list, err := f.credentials(r)
	switch {
	case err != nil || len(list) > 1:
		return "", ErrBadRequest
	case len(list) == 0:
		return "", gormsessions.ErrNoSession
	}
	return list[0].token, nil
}

// sameToken reports whether two requests bring the same.
func (f *front) sameToken(a, b *http.Request) bool {
	one, err := f.token(a)
	other, otherErr := f.token(b)
	return one == other && err == otherErr
}

// brings reports whether the request brings a credential for f, good or not.
func (f *front) brings(r *http.Request) bool {
	list, err := f.credentials(r)
	return err != nil || len(list) > 0
}

// mark says that the response is one client's alone.
func (f *front) mark(h http.Header) {
	h.Set("Cache-Control", "no-store")
	f.vary(h)
}

func (f *front) vary(h http.Header) {
	for _, source := range f.sources {
		if !lists(h["Vary"], source.name()) {
			h.Add("Vary", source.name())
		}
	}
}

// lists reports whether the comma-separated lines of a header hold one of the items.
func lists(lines []string, items ...string) bool {
	for _, line := range lines {
		for part := range strings.SplitSeq(line, ",") {
			part = textproto.TrimString(part)
			if slices.ContainsFunc(items, func(item string) bool { return strings.EqualFold(part, item) }) {
				return true
			}
		}
	}
	return false
}

// sets reports whether the headers set a cookie of that name.
func sets(h http.Header, name string) bool {
	return slices.ContainsFunc(h["Set-Cookie"], func(line string) bool { return strings.HasPrefix(line, name+"=") })
}

// setCookie sets a cookie in place of those of its name that were set before.
func setCookie(h http.Header, c *http.Cookie) {
	h["Set-Cookie"] = slices.DeleteFunc(slices.Clone(h["Set-Cookie"]), func(line string) bool {
		return strings.HasPrefix(line, c.Name+"=")
	})
	h.Add("Set-Cookie", c.String())
}
