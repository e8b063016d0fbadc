package gormsessions

import (
	"context"
	"database/sql"
	"log/slog"
	"reflect"
	"runtime/debug"
	"slices"
	"time"

	"github.com/google/uuid"
	"gorm.io/gorm"
)

// EventKind says what happened.
type EventKind string

// The kinds of events.
const (
	EventCreated  EventKind = "created"
	EventExtended EventKind = "extended" // a use was written, or Extend or SetExpiry was called
	EventRotated  EventKind = "rotated"  // Reason is "reauthenticated" where it was by Reauthenticate
	EventRevoked  EventKind = "revoked"  // Reason is Revoke's, "limit", or "reuse", after which comes EventReused
	EventRejected EventKind = "rejected" // Count new ones were refused with ErrTooManySessions; Reason is "limit"
	EventReused   EventKind = "reused"   // a token that was rotated away came back: the session is revoked; Reason is "reuse"
	EventPruned   EventKind = "pruned"   // Count were deleted; at most one event a second
)

// The reasons that the plugin itself gives for a revocation.
const (
	reasonReuse = "reuse"
	reasonLimit = "limit"
)

// Event is one thing that happened to a session, for Config.OnEvent. It never
// holds a token or a digest.
type Event struct {
	Kind      EventKind
	SessionID uuid.UUID // the nil UUID for EventRejected and EventPruned
	Owner     any       // the owner's key, of the key's own type; nil where there is none
	Reason    string    // see the kinds; for the others empty
	Time      time.Time // by gorm.Config.NowFunc, in UTC
	Count     int64     // 1, or how many sessions were pruned or refused

	of *binding // whose OnEvent is told
	db *gorm.DB
}

// DB is where to write what belongs to the event, such as an audit row, so that the
// row is there if the fact is: the *gorm.DB that the plugin is registered on; or,
// inside a transaction that is not the plugin's own, that transaction. It does not end
// with the context of the call.
func (e Event) DB() *gorm.DB { return e.db }

// LogValue implements [slog.LogValuer].
func (e Event) LogValue() slog.Value {
	attrs := []slog.Attr{slog.String("kind", string(e.Kind))}
	if e.SessionID != uuid.Nil {
		attrs = append(attrs, slog.String("session", e.SessionID.String()))
	}
	if e.Owner != nil {
		attrs = append(attrs, slog.Any("owner", e.Owner))
	}
	if e.Reason != "" {
		attrs = append(attrs, slog.String("reason", e.Reason))
	}
	return slog.GroupValue(append(attrs, slog.Int64("count", e.Count))...)
}

// LogEvents is a Config.OnEvent that writes events to a logger: extensions at
// the level Debug, reuse and rejections at Warn, the others at Info.
//
//	gormsessions.Config{OnEvent: gormsessions.LogEvents(slog.Default())}
func LogEvents(logger *slog.Logger) func(context.Context, Event) {
	return func(ctx context.Context, e Event) {
		level := slog.LevelInfo
		switch e.Kind {
		case EventExtended:
			level = slog.LevelDebug
		case EventReused, EventRejected:
			level = slog.LevelWarn
		}
		logger.LogAttrs(ctx, level, "session "+string(e.Kind), slog.Any("event", e))
	}
}

// outboxKey is a setting of statements within a transaction that the plugin
// itself began: their events wait there until it has committed.
const outboxKey = "gormsessions:outbox"

type outbox struct {
	of      *binding // which began it; an association's plugin may have events in it too
	events  []Event
	changes []change
}

// after are the events to send once the transaction has ended: of one that failed
// only that it was refused.
func (o *outbox) after(err error) []Event {
	if err == nil {
		return o.events
	}
	return slices.DeleteFunc(o.events, func(e Event) bool { return e.Kind != EventRejected })
}

// send tells the application of what happened on db, which is after the commit
// but in a transaction of the caller's.
func (b *binding) send(db *gorm.DB, events ...Event) {
	if b.onEvent == nil {
		return
	}
	for i := range events {
		events[i].of = b
	}
	deliver(db, events)
}

// deliver hands each event to the plugin that it is of. All are of one *gorm.DB.
func deliver(db *gorm.DB, events []Event) {
	if len(events) == 0 {
		return
	}
	if box, ok := db.Get(outboxKey); ok {
		box.(*outbox).events = append(box.(*outbox).events, events...)
		return
	}
	ctx := context.WithoutCancel(db.Statement.Context)
	// From the root: db may hold a statement, its errors and settings.
	own := events[0].of.root.Session(&gorm.Session{NewDB: true, Context: ctx}) // its Statement is a copy
	own.Statement.ConnPool = db.Statement.ConnPool
	for _, e := range events {
		e.db = own
		e.of.sendOne(ctx, e)
	}
}

// sendOne survives a handler that panics: what it was told of has happened, and
// the caller must learn so.
func (b *binding) sendOne(ctx context.Context, e Event) {
	defer func() {
		if r := recover(); r != nil {
			b.root.Logger.Error(ctx, "gormsessions: Config.OnEvent panicked on %q: %v\n%s", e.Kind, r, debug.Stack())
		}
	}()
	b.onEvent(ctx, e)
}

// event is one of a session, which v holds.
func (b *binding) event(kind EventKind, v reflect.Value, now time.Time, reason string) Event {
	e := Event{Kind: kind, SessionID: sessionAt(v).ID, Time: now, Reason: reason, Count: 1}
	if b.ownerID != nil {
		if key, zero := b.ownerID.ValueOf(b.root.Statement.Context, v); !zero {
			e.Owner = key
		}
	}
	return e
}

// eventOf is event for a pointer to a session.
func (b *binding) eventOf(kind EventKind, session any, now time.Time, reason string) Event {
	return b.event(kind, reflect.ValueOf(session).Elem(), now, reason)
}

// transaction runs fn in one, nested where the caller has one, and sends its
// events once it has committed.
func (c call) transaction(fn func(call) error, opts ...*sql.TxOptions) error {
	box := &outbox{of: c.binding}
	db := c.onPrimary(c.db)
	// A part that fails must leave nothing behind in the caller's transaction.
	db.DisableNestedTransaction = false
	defer box.settle(c.db)
	err := db.Transaction(func(tx *gorm.DB) error {
		tx = tx.Set(outboxKey, box)
		unprepared(tx.Statement)
		return fn(call{c.binding, tx.Session(&gorm.Session{})})
	}, opts...)
	deliver(c.db, box.after(err))
	return err
}
