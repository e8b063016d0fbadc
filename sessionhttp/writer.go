package sessionhttp

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// record is what a visit has to say in the headers of its response. It is
// written down when the session is loaded, by whichever goroutine, and goes into the
// headers when they are sent, by the goroutine that sends them: a map of headers
// is not for two at once.
type record struct {
	front  *front
	header func() http.Header

	mu      sync.Mutex
	asked   bool
	cookie  *http.Cookie // to renew
	decided time.Time    // when that was
	sent    bool
}

func (c *record) ask() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = true
}

func (c *record) isWritten() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sent
}

// write puts it into the headers, once.
func (c *record) write() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sent {
		return
	}
	c.sent = true
	if !c.asked {
		return
	}
	h := c.header()
	if !lists(h["Cache-Control"], "private", "no-store") {
		h.Set("Cache-Control", "no-store")
	}
	c.front.vary(h)
	// Not in place of one that was set meanwhile; nor late, when another response
	// may have brought the client a newer token.
	if c.cookie != nil && time.Since(c.decided) <= justNow && !sets(h, c.cookie.Name) {
		setCookie(h, c.cookie)
	}
}

// writer tells the record when the headers are sent.
type writer struct {
	http.ResponseWriter
	record *record
}

// wrap keeps what handlers look for in a ResponseWriter by a type assertion:
// http.Flusher and http.Hijacker where it has them. The rest works with any.
func wrap(w http.ResponseWriter, c *record) http.ResponseWriter {
	wrapped := &writer{w, c}
	_, flushes := w.(http.Flusher)
	raw, hijacks := w.(http.Hijacker)
	hijacker := hijacker{raw, c}
	switch {
	case flushes && hijacks:
		return struct {
			*writer
			flusher
			hijackable
		}{wrapped, flusher{wrapped}, hijacker}
	case flushes:
		return struct {
			*writer
			flusher
		}{wrapped, flusher{wrapped}}
	case hijacks:
		return struct {
			*writer
			hijackable
		}{wrapped, hijacker}
	}
	return wrapped
}

// Unwrap is for http.ResponseController.
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *writer) WriteHeader(status int) {
	if status >= 200 || status == http.StatusSwitchingProtocols { // the others come before the headers
		w.record.write()
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *writer) Write(p []byte) (int, error) {
	w.record.write()
	return w.ResponseWriter.Write(p)
}

func (w *writer) WriteString(s string) (int, error) {
	w.record.write()
	return io.WriteString(w.ResponseWriter, s)
}

func (w *writer) ReadFrom(src io.Reader) (int64, error) {
	w.record.write()
	return io.Copy(w.ResponseWriter, src) // by its ReadFrom, where it has one
}

// FlushError is what http.ResponseController looks for first.
func (w *writer) FlushError() error {
	if !canFlush(w.ResponseWriter) {
		return http.ErrNotSupported // and nothing was sent
	}
	w.record.write()
	return http.NewResponseController(w.ResponseWriter).Flush()
}

func (w *writer) Push(target string, options *http.PushOptions) error {
	if p, ok := w.ResponseWriter.(http.Pusher); ok {
		return p.Push(target, options)
	}
	return http.ErrNotSupported
}

// canFlush reports whether http.ResponseController could flush w.
func canFlush(w http.ResponseWriter) bool {
	for {
		switch v := w.(type) {
		case interface{ FlushError() error }, http.Flusher:
			return true
		case interface{ Unwrap() http.ResponseWriter }:
			w = v.Unwrap()
		default:
			return false
		}
	}
}

type flusher struct{ w *writer }

func (f flusher) Flush() { _ = f.w.FlushError() }

// hijackable is http.Hijacker by a name of its own, beside writer's fields.
type hijackable interface {
	Hijack() (net.Conn, *bufio.ReadWriter, error)
}

// hijacker tells the record that no headers can be sent any more.
type hijacker struct {
	hijackable
	record *record
}

func (h hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := h.hijackable.Hijack()
	if err == nil {
		h.record.mu.Lock()
		h.record.sent = true
		h.record.mu.Unlock()
	}
	return conn, rw, err
}
