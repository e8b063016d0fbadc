package main

import (
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/gormsessions/gormsessions"
)

// hub wakes the open pages of a user, when their sessions have changed.
type hub struct {
	closed chan struct{} // when the server stops
	once   sync.Once

	mu      sync.Mutex
	streams map[uint]map[chan struct{}]bool // by user
}

const (
	maxStreams = 32               // of a user
	lookAgain  = 10 * time.Second // for what happens on other nodes, or by time
)

func newHub() *hub {
	return &hub{closed: make(chan struct{}), streams: make(map[uint]map[chan struct{}]bool)}
}

func (h *hub) close() { h.once.Do(func() { close(h.closed) }) }

// join returns what is sent to when the user's sessions may have changed, and what
// to call in the end; nil: there are too many.
func (h *hub) join(user uint) (woken <-chan struct{}, leave func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.streams[user]) >= maxStreams {
		return nil, nil
	}
	if h.streams[user] == nil {
		h.streams[user] = make(map[chan struct{}]bool)
	}
	own := make(chan struct{}, 1) // one that was not looked at yet is enough
	h.streams[user][own] = true
	return own, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.streams[user], own)
		if len(h.streams[user]) == 0 {
			delete(h.streams, user)
		}
	}
}

func (h *hub) wake(user uint) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for stream := range h.streams[user] {
		select {
		case stream <- struct{}{}:
		default:
		}
	}
}

// notice is for OnEvent. An event only says that it is time to look: the database
// says what is so, and whoever is woken asks it.
func (h *hub) notice(e gormsessions.Event) {
	if user, ok := e.Owner.(uint); ok && e.Kind != gormsessions.EventExtended {
		h.wake(user)
	}
}

// stream is server-sent events, for as long as the page is open: "changed" when the
// user's sessions have, "ended" when this one is over.
func (s *site) stream(w http.ResponseWriter, r *http.Request, device *Device) error {
	woken, leave := s.live.join(device.OwnerID)
	if woken == nil {
		return problem{http.StatusTooManyRequests, "Too many pages are open", "Please close some."}
	}
	defer leave()

	control := http.NewResponseController(w)
	if err := control.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/event-stream")
	send := func(line string) error {
		late := control.SetWriteDeadline(time.Now().Add(lookAgain)) // the server's is for whole pages
		_, err := fmt.Fprintf(w, "%s\n\n", line)
		return errors.Join(late, err, control.Flush())
	}

	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	for line := ": hello"; ; {
		// Get, unlike Authenticate, is no use of the session: an open page must
		// not keep it alive. It is looked for first of all, since it may have
		// ended before this stream joined.
		current, err := s.sessions.Get(r.Context(), gormsessions.Active, gormsessions.WithID(device.ID))
		ended := errors.Is(err, gormsessions.ErrNoSession)
		switch {
		case ended:
			line = "event: ended\ndata:"
		case err != nil: // a database that is down is no sign-out
			line = ": later"
		}
		if send(line) != nil || ended {
			return nil
		}
		line = ": still here"
		select {
		case <-r.Context().Done():
			return nil
		case <-s.live.closed:
			return nil
		case <-tick.C:
		case <-until(current):
		case <-woken:
			line = "event: changed\ndata:"
		}
	}
}

// until is when the session expires.
func until(device *Device) <-chan time.Time {
	if device == nil || device.ExpiresAt == nil {
		return nil
	}
	return time.After(time.Until(*device.ExpiresAt))
}
