package sessionhttp_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/gormsessions/gormsessions/sessionhttp"
)

// TestWriter: a handler finds in its ResponseWriter what it would find without
// Handler, and each way to send the headers sends those of the session.
func TestWriter(t *testing.T) {
	e := start(t)
	web := e.web()
	s := e.session()
	e.clock.Advance(2 * time.Hour)
	ask := func(r *http.Request) {
		if _, ok := sessionhttp.FromContext[UserSession](r.Context()); !ok {
			t.Error("no session")
		}
	}
	has := func(w http.ResponseWriter) string {
		_, flusher := w.(http.Flusher)
		_, hijacker := w.(http.Hijacker)
		return fmt.Sprint("Flusher ", flusher, ", Hijacker ", hijacker)
	}
	for _, c := range []struct {
		name    string
		handler http.HandlerFunc
	}{
		{"nothing", func(_ http.ResponseWriter, r *http.Request) { ask(r) }},
		{"WriteHeader", func(w http.ResponseWriter, r *http.Request) { ask(r); w.WriteHeader(http.StatusOK) }},
		{"Write", func(w http.ResponseWriter, r *http.Request) { ask(r); _, _ = w.Write([]byte("a")) }},
		{"WriteString", func(w http.ResponseWriter, r *http.Request) { ask(r); _, _ = io.WriteString(w, "a") }},
		{"ReadFrom", func(w http.ResponseWriter, r *http.Request) {
			ask(r)
			file, err := os.Open("writer_test.go")
			must(t, err)
			defer file.Close()
			if _, ok := w.(io.ReaderFrom); !ok {
				t.Error("no ReaderFrom")
			}
			_, err = io.Copy(w, file)
			must(t, err)
		}},
		{"Flush", func(w http.ResponseWriter, r *http.Request) {
			ask(r)
			w.(http.Flusher).Flush()
			_, _ = io.WriteString(w, "a")
		}},
		{"ResponseController.Flush", func(w http.ResponseWriter, r *http.Request) {
			ask(r)
			must(t, http.NewResponseController(w).Flush())
			must(t, http.NewResponseController(w).SetWriteDeadline(time.Now().Add(time.Hour)))
		}},
		{"EarlyHints", func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusEarlyHints)
			ask(r)
			w.WriteHeader(http.StatusOK)
		}},
		{"Push", func(w http.ResponseWriter, r *http.Request) {
			if err := w.(http.Pusher).Push("/style.css", nil); !errors.Is(err, http.ErrNotSupported) {
				t.Errorf("got %v, want ErrNotSupported", err)
			}
			ask(r)
		}},
		{"HEAD", func(w http.ResponseWriter, r *http.Request) { r.Method = "HEAD"; ask(r) }},
	} {
		for _, version := range []int{1, 2} {
			t.Run(fmt.Sprintf("%s/HTTP%d", c.name, version), func(t *testing.T) {
				var bare, wrapped string
				server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					bare = has(w)
					web.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						wrapped = has(w)
						c.handler(w, r)
					})).ServeHTTP(w, r)
				}))
				server.EnableHTTP2 = version == 2
				server.StartTLS()
				defer server.Close()
				req, err := http.NewRequestWithContext(t.Context(), "GET", server.URL, nil)
				must(t, err)
				cookie(s.Token)(req)
				e.clock.Advance(2 * time.Hour)
				res, err := server.Client().Do(req)
				must(t, err)
				body(res) // all of it, or the server cannot write it
				must(t, res.Body.Close())
				want(t, "version", res.ProtoMajor, version)
				want(t, "status", res.StatusCode, http.StatusOK)
				wantPrivate(t, res, "Cookie")
				want(t, "renewed", set(t, res, sessionhttp.DefaultCookieName) != nil, true)
				want(t, "interfaces", wrapped, bare)
			})
		}
	}

	t.Run("Hijack", func(t *testing.T) {
		for name, hijack := range map[string]func(http.ResponseWriter) (net.Conn, *bufio.ReadWriter, error){
			"assertion": func(w http.ResponseWriter) (net.Conn, *bufio.ReadWriter, error) { return w.(http.Hijacker).Hijack() },
			"ResponseController": func(w http.ResponseWriter) (net.Conn, *bufio.ReadWriter, error) {
				return http.NewResponseController(w).Hijack()
			},
		} {
			server := httptest.NewServer(web.Require(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				conn, buf, err := hijack(w)
				must(t, err)
				defer conn.Close()
				s, _ := sessionhttp.FromContext[UserSession](r.Context())
				_, _ = buf.WriteString("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello, " + s.Device)
				_ = buf.Flush()
			})))
			req, err := http.NewRequestWithContext(t.Context(), "GET", server.URL, nil)
			must(t, err)
			cookie(s.Token)(req)
			res, err := http.DefaultClient.Do(req)
			must(t, err)
			want(t, name, body(res), "hello, Firefox")
			_ = res.Body.Close()
			server.Close()
		}
	})

	t.Run("Interfaces", func(t *testing.T) {
		type bare struct{ http.ResponseWriter }
		type hijacks struct {
			http.ResponseWriter
			http.Hijacker
		}
		rec := httptest.NewRecorder()
		for _, w := range []http.ResponseWriter{rec, bare{rec}, hijacks{ResponseWriter: rec}} {
			web.Handler(http.HandlerFunc(func(wrapped http.ResponseWriter, _ *http.Request) {
				want(t, "interfaces", has(wrapped), has(w))
			})).ServeHTTP(w, request())
		}
		// Nothing to flush with is said, not hidden.
		web.Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if err := http.NewResponseController(w).Flush(); !errors.Is(err, http.ErrNotSupported) {
				t.Errorf("got %v, want ErrNotSupported", err)
			}
		})).ServeHTTP(bare{rec}, request())
	})

	t.Run("OneCookie", func(t *testing.T) {
		// Out, and in again as somebody else, in one request.
		res := serve(web.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.SetCookie(w, &http.Cookie{Name: "theme", Value: "dark"})
			ask(r)
			must(t, web.SignOut(w, r))
			s := &UserSession{}
			s.OwnerID = e.user.ID
			must(t, web.SignIn(w, r, s))
			ask(r)
		})), cookie(e.session().Token))
		want(t, "Set-Cookie", len(res.Header["Set-Cookie"]), 2)
		if c := set(t, res, sessionhttp.DefaultCookieName); c == nil || c.MaxAge <= 0 {
			t.Errorf("got %v, want the new one", c)
		}
		want(t, "the other", strings.HasPrefix(res.Header.Get("Set-Cookie"), "theme=dark"), true)
	})
}
