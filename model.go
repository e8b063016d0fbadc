package gormsessions

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"gorm.io/datatypes"
	"gorm.io/gorm"
)

// Session is what applications embed to give their sessions an owner:
//
//	type UserSession struct {
//		gormsessions.Session[User, uint]
//		Device string
//	}
//
// O is the owner's model and K the Go type of its primary key. The column
// takes that very type, so no conversion can mistake one owner for another;
// a K that does not fit is an error when the plugin is registered.
//
// Set Owner (saved before) or OwnerID to create a session; one without an
// owner is refused with [ErrZeroOwner]. A session that was found has its Owner only
// with [WithOwner] or GORM's Preload, and nil otherwise. The foreign key deletes the
// sessions of a deleted owner. The owner's own side of the association is written
//
//	Sessions []UserSession `gorm:"foreignKey:OwnerID"`
type Session[O any, K comparable] struct {
	Base
	OwnerID K  `gorm:"<-:create;not null;index"`
	Owner   *O `gorm:"belongsTo;constraint:OnUpdate:CASCADE,OnDelete:CASCADE"`
}

// Base is a session without an owner's model: embed it, not [Session], where
// the owner is not in this database, or where one table serves owners of
// several kinds (an OwnerType and an OwnerID of the application's own, for
// GORM's polymorphic associations).
//
// All of it but Data is create-only for GORM, and so are an OwnerID and an
// OwnerType beside it: a stale value can revive no session, move none and change
// no token. Save and Updates of a struct leave these columns as they are stored;
// an update that names one is [ErrReadOnlyColumn]. The methods of [Plugin] write
// them.
type Base struct {
	// ID is a UUIDv7. It is no secret: it may be shown to the owner and
	// written to logs. Default: made on create.
	ID uuid.UUID `gorm:"primaryKey;<-:create;not null"`

	// Token is the secret, on a value that was just created or rotated, and
	// nowhere else: string(s.Token) is the only copy. It has no column. Leave it
	// empty on create.
	Token Token `gorm:"-"`

	// TokenDigest is what the database keeps of the token. On a value that was found
	// by a token which Rotate has replaced, it is that token's digest.
	TokenDigest Digest `gorm:"<-:create;not null;size:64;uniqueIndex"`

	// Data is the application's own, a JSON object; nil is stored as {}. Numbers come back as
	// json.Number. (encoding/xml knows no maps, and leaves it out.)
	Data datatypes.JSONMap `gorm:"not null" xml:"-"`

	// ExpiresAt is the one moment that decides: from it on the session is
	// expired. Nil: it never expires.
	ExpiresAt *time.Time `gorm:"<-:create;precision:6;index"`

	// IdleTimeout is how far from now each use moves ExpiresAt. 0: ExpiresAt is
	// fixed. Never: no expiry by idleness. On create, when this and ExpiresAt are
	// both unset, the Config's is taken; ExpiresAt alone stays fixed. Stored in
	// nanoseconds.
	IdleTimeout time.Duration `gorm:"<-:create;not null"`

	// Deadline is the absolute timeout: ExpiresAt is never later. Nil: none. On
	// create, nil is replaced by the Config's AbsoluteTimeout from now, if it has one.
	Deadline *time.Time `gorm:"<-:create;precision:6"`

	// LastUsedAt is when the session was last used; the last use may be later
	// by up to the Config's TouchInterval. Nil: not used since it was created.
	LastUsedAt *time.Time `gorm:"<-:create;precision:6"`

	// AuthenticatedAt is when the person last proved who they are. Default:
	// the creation; Reauthenticate makes it now.
	AuthenticatedAt time.Time `gorm:"<-:create;not null;precision:6"`

	// RevokedAt is when the session was ended on purpose, and RevokedReason why:
	// what Revoke was told, or "limit" or "reuse". Nil: it was not.
	RevokedAt     *time.Time `gorm:"<-:create;precision:6;index"`
	RevokedReason string     `gorm:"<-:create;not null;size:255"`

	CreatedAt time.Time `gorm:"<-:create;not null;precision:6"`
	UpdatedAt time.Time `gorm:"<-:create;not null;precision:6"`
}

// Model is what embeds [Session] or [Base]. Embedding implements it; only a
// struct that holds one of them in a named field writes the method itself, and
// returns the address of its Base.
type Model interface{ SessionBase() *Base }

// SessionBase returns b. It makes a struct that embeds Base a [Model].
func (b *Base) SessionBase() *Base { return b }

// IsActive reports whether the session, as loaded, is neither revoked nor
// expired now, by the machine's clock (not gorm.Config.NowFunc). It asks no
// database: [Plugin.Authenticate] does.
func (b *Base) IsActive() bool { return b.activeAt(time.Now()) }

// IsExpired reports whether ExpiresAt has come, by the machine's clock. It is
// false for a session that never expires.
func (b *Base) IsExpired() bool { return b.expiredAt(time.Now()) }

// IsRevoked reports whether the session was ended on purpose.
func (b *Base) IsRevoked() bool { return b.RevokedAt != nil }

// IsFresh reports whether the person proved who they are within the last d, by the
// machine's clock: what to ask before a dangerous action.
func (b *Base) IsFresh(d time.Duration) bool { return time.Since(b.AuthenticatedAt) <= d }

func (b *Base) activeAt(now time.Time) bool { return b.RevokedAt == nil && !b.expiredAt(now) }

func (b *Base) expiredAt(now time.Time) bool {
	return b.ExpiresAt != nil && !now.Before(*b.ExpiresAt)
}

// slides reports whether a use pushes the expiry.
func (b *Base) slides() bool { return b.IdleTimeout > 0 && b.IdleTimeout != Never }

// capExpiry keeps the expiry within the absolute timeout.
func (b *Base) capExpiry() {
	if b.Deadline != nil && (b.ExpiresAt == nil || b.ExpiresAt.After(*b.Deadline)) {
		b.ExpiresAt = b.Deadline
	}
}

// optionalTimes and times are the columns of Base that hold one.
func (b *Base) optionalTimes() [4]namedTime[*time.Time] {
	return [...]namedTime[*time.Time]{
		{"ExpiresAt", &b.ExpiresAt}, {"Deadline", &b.Deadline}, {"LastUsedAt", &b.LastUsedAt}, {"RevokedAt", &b.RevokedAt}}
}

func (b *Base) times() [3]namedTime[time.Time] {
	return [...]namedTime[time.Time]{
		{"AuthenticatedAt", &b.AuthenticatedAt}, {"CreatedAt", &b.CreatedAt}, {"UpdatedAt", &b.UpdatedAt}}
}

type namedTime[T any] struct {
	name  string
	value *T
}

const redacted = "[redacted]"

func hide(size int) string {
	if size == 0 {
		return ""
	}
	return redacted
}

// Token is a session's secret. It hides itself: fmt (every verb), log/slog,
// encoding/json, encoding/xml and encoding/gob show [redacted]. string(t) is
// the deliberate way to get it. Two ways past that are fmt's own: it calls no
// methods of a value in an unexported field, nor under the verbs %p and %w, which
// are for pointers and errors (go vet reports them). An empty one shows as empty.
type Token string

// Digest is what a [Hasher] makes of a token. It hides itself as [Token] does,
// also from GORM's logger, which prints the parameters of statements.
type Digest []byte

// String implements fmt.Stringer: it shows no token.
func (t Token) String() string { return hide(len(t)) }

// GoString implements fmt.GoStringer: it shows no token.
func (t Token) GoString() string { return hide(len(t)) }

// Format implements fmt.Formatter, for every verb: it shows no token.
func (t Token) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, hide(len(t))) }

// LogValue implements slog.LogValuer: it shows no token.
func (t Token) LogValue() slog.Value { return slog.StringValue(hide(len(t))) }

// MarshalText hides the token from encoding/json, encoding/xml and the like.
func (t Token) MarshalText() ([]byte, error) { return []byte(hide(len(t))), nil }

// MarshalBinary hides the token from encoding/gob.
func (t Token) MarshalBinary() ([]byte, error) { return []byte(hide(len(t))), nil }

// UnmarshalText leaves t empty: no token is ever read back from what
// MarshalText wrote, nor taken from a client's JSON.
func (t *Token) UnmarshalText([]byte) error { *t = ""; return nil }

// UnmarshalBinary leaves t empty, as UnmarshalText does.
func (t *Token) UnmarshalBinary([]byte) error { *t = ""; return nil }

// String implements fmt.Stringer: it shows no digest.
func (d Digest) String() string { return hide(len(d)) }

// GoString implements fmt.GoStringer: it shows no digest.
func (d Digest) GoString() string { return hide(len(d)) }

// Format implements fmt.Formatter, for every verb: it shows no digest.
func (d Digest) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, hide(len(d))) }

// LogValue implements slog.LogValuer: it shows no digest.
func (d Digest) LogValue() slog.Value { return slog.StringValue(hide(len(d))) }

// MarshalText hides the digest from encoding/json, encoding/xml and the like.
func (d Digest) MarshalText() ([]byte, error) { return []byte(hide(len(d))), nil }

// MarshalBinary hides the digest from encoding/gob.
func (d Digest) MarshalBinary() ([]byte, error) { return []byte(hide(len(d))), nil }

// UnmarshalText leaves d empty: no digest is ever taken from a client's JSON.
func (d *Digest) UnmarshalText([]byte) error { *d = nil; return nil }

// UnmarshalBinary leaves d empty, as UnmarshalText does.
func (d *Digest) UnmarshalBinary([]byte) error { *d = nil; return nil }

// Scan implements [database/sql.Scanner].
func (d *Digest) Scan(value any) error {
	switch v := value.(type) {
	case nil:
		*d = nil
	case []byte:
		*d = append(Digest(nil), v...)
	case string:
		*d = Digest(v)
	default:
		return fmt.Errorf("gormsessions: scan: a token digest is bytes, not %T", value)
	}
	return nil
}

// These are the errors that callers tell apart. All others are failures of the
// database or of the call, and never mean "not signed in".
var (
	// ErrNoSession says that there is no such session: the token is unknown,
	// malformed, expired or revoked, all the same. It matches
	// gorm.ErrRecordNotFound. From Authenticate, Lookup, Get, Extend, SetExpiry,
	// Rotate, Reauthenticate.
	ErrNoSession error = noSession{}

	// ErrReused: a token that Rotate replaced was presented after its grace, so
	// somebody else has it too. Authenticate has revoked the session, with the
	// reason "reuse", if it was not revoked already; Lookup has not. It matches
	// ErrNoSession. From Authenticate and Lookup.
	ErrReused error = endedFor("gormsessions: a token that was rotated away came back: its session is revoked")

	// ErrRotated: since this value was loaded, another call has rotated the session
	// (that call's answer carries the new token) or given it another hasher's digest
	// (the token stays). It matches ErrNoSession, but the client is signed in: leave
	// its cookie as it is. From Rotate and Reauthenticate.
	ErrRotated error = endedFor("gormsessions: another call has rotated the session: its answer carries the new token")

	// ErrTooManySessions: the owner has MaxPerOwner active sessions already (with
	// Reject), or one statement would create more of them. From creates, and from
	// SetExpiry where it would revalidate one.
	ErrTooManySessions = errors.New("gormsessions: the owner has as many active sessions as Config.MaxPerOwner allows")

	// ErrNotRegistered: the plugin was not registered with db.Use, or With was
	// given a *gorm.DB that it is not registered on. From every method.
	ErrNotRegistered = errors.New("gormsessions: the plugin is not registered on this *gorm.DB: call db.Use(sessions) first")

	// ErrZeroOwner: the owner is nil, not saved yet, or its key is zero. From
	// creates, ForUser and ForOwner.
	ErrZeroOwner = errors.New("gormsessions: the owner is nil, not saved yet, or has a zero key")

	// ErrWrongOwner: the owner is of another model, or the key of another type,
	// than the session's; or, with MaxPerOwner on MySQL, there is no such owner. From
	// creates, ForUser and ForOwner.
	ErrWrongOwner = errors.New("gormsessions: the owner does not fit the session's model")

	// ErrUnknownField: Where was given a name that is no column of the model.
	ErrUnknownField = errors.New("gormsessions: unknown field")

	// ErrInvalidValue: a value does not fit its column, or a database could not
	// store it exactly; a session is nil or was not saved; a scope uses what the
	// call does not allow (Select, Omit, Joins, a limit, an Or of its own). The text
	// says which. From all that take a value, a session or a scope.
	ErrInvalidValue = errors.New("gormsessions: invalid value")

	// ErrNotModel: a scope was used on a statement whose model embeds neither
	// Session nor Base, or lacks the column that the scope asks for.
	ErrNotModel = errors.New("gormsessions: the statement's model does not fit the scope")

	// ErrNoScope: Revoke was called with nothing that limits it. (To end all
	// sessions, say so: Active.)
	ErrNoScope = errors.New("gormsessions: revoke needs a scope that says which sessions; Active says all that are")

	// ErrUnsafeCreate: the create could not store a new token's digest: a map,
	// a Select or Omit that leaves out a column of the session, an upsert, or a
	// value that was created before (Save of a deleted session among them).
	ErrUnsafeCreate = errors.New("gormsessions: create refused")

	// ErrReadOnlyColumn: a GORM update named a column that only the plugin's
	// methods write.
	ErrReadOnlyColumn = errors.New("gormsessions: update refused")
)

type noSession struct{}

func (noSession) Error() string        { return "gormsessions: no such session" }
func (noSession) Is(target error) bool { return target == gorm.ErrRecordNotFound }

// endedFor is a kind of ErrNoSession that says more.
type endedFor string

func (e endedFor) Error() string { return string(e) }
func (endedFor) Is(target error) bool {
	return target == ErrNoSession || target == gorm.ErrRecordNotFound
}
