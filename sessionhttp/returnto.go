package sessionhttp

import (
	"net/http"
	"net/url"
	"path"
	"strings"
)

// returnTo is the parameter that holds the way back from the sign-in page.
const returnTo = "return_to"

// ReturnTo is where the sign-in handler sends people afterwards: to the page that
// Require sent them from. It reads the parameter return_to of the form or the
// query, and takes nothing but a path of this site: whatever else stands there, it
// returns "/".
//
//	http.Redirect(w, r, sessionhttp.ReturnTo(r), http.StatusSeeOther)
//
// The form on the sign-in page must send the parameter on. One without an action does,
// since it goes to the page's own URL; otherwise put it into a hidden field.
func ReturnTo(r *http.Request) string {
	if to := r.FormValue(returnTo); isLocal(to) {
		return to
	}
	return "/"
}

// longestReturn keeps the way back within what servers and browsers take.
const longestReturn = 2048

// isLocal reports whether s can only be a path of this site, whoever reads it:
// browsers take // and /\ for another host, drop tabs and line feeds, and some
// programs decode once more than they should. What is in doubt is refused.
func isLocal(s string) bool {
	if len(s) > longestReturn || !strings.HasPrefix(s, "/") {
		return false
	}
	if strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || r == '\\' || r == '#' }) {
		return false
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "" || u.Host != "" || u.User != nil || u.Opaque != "" {
		return false
	}
	decoded := pathPart(s)
	for range 8 {
		if strings.Contains(decoded, "//") || strings.ContainsFunc(decoded, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\\' }) {
			return false
		}
		// http.Redirect cleans a path: what was inside could come to the front.
		if clean := path.Clean(decoded); clean != decoded && clean+"/" != decoded {
			return false
		}
		again, err := url.PathUnescape(decoded)
		if err != nil || again == decoded {
			return true
		}
		decoded = again
	}
	return false // encoded more often than anybody does by accident
}

// pathPart is a URL's path, without what follows.
func pathPart(s string) string {
	if i := strings.IndexAny(s, "?#"); i >= 0 {
		return s[:i]
	}
	return s
}

// pathOf is the path and query that the client asked for. http.StripPrefix
// changes the request's URL, not its RequestURI.
func pathOf(r *http.Request) string {
	if u, err := url.ParseRequestURI(r.RequestURI); err == nil {
		return u.RequestURI()
	}
	return r.URL.RequestURI()
}

func acceptsHTML(r *http.Request) bool {
	for _, line := range r.Header["Accept"] {
		for part := range strings.SplitSeq(line, ",") {
			kind, _, _ := strings.Cut(part, ";")
			if strings.EqualFold(strings.TrimSpace(kind), "text/html") {
				return true
			}
		}
	}
	return false
}
