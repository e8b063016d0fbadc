// Package gormsessions keeps sessions and API keys in the application's own
// database, as a plugin for GORM.
//
// An application embeds [Session] in a struct of its own, registers a [Plugin]
// for it on the *gorm.DB that it already has, creates sessions with plain GORM
// and asks for them with GORM scopes:
//
//	type UserSession struct {
//		gormsessions.Session[User, uint]
//		Device string
//	}
//
//	sessions := gormsessions.New[UserSession](gormsessions.Config{})
//	err := db.Use(sessions) // migrates the table user_sessions
//
//	s := UserSession{Device: "Firefox on Linux"}
//	s.OwnerID = user.ID
//	err = db.Create(&s).Error // string(s.Token) is the only copy of the secret
//
//	got, err := sessions.Authenticate(ctx, token, gormsessions.WithOwner)
//
// The table holds a digest in place of the token. A session slides with its
// use, expires, and is revoked at once; [Config] has the times.
//
// In code that has a token, call [Plugin.Authenticate]; the scopes are for
// lists, counts and pages of devices, not for deciding who is signed in.
package gormsessions

import (
	"bytes"
	"context"
	"crypto/subtle"
	"database/sql"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"gorm.io/gorm"
	"gorm.io/gorm/clause"
	"gorm.io/gorm/schema"
)

// Plugin manages the sessions of one model T. Make it with [New] and register it
// with db.Use; until then every method returns [ErrNotRegistered]. It is safe for
// concurrent use; the session that a method is given is the caller's, for one
// goroutine at a time.
//
// A database that fails gives its own error, wrapped, and never [ErrNoSession]; so
// does a context that ends.
type Plugin[T any] struct {
	core *core
	with bool     // made by With, for
	tx   *gorm.DB // this one
}

// core is what a Plugin shares with the copies that With makes.
type core struct {
	config Config
	model  reflect.Type
	mu     sync.Mutex // held while it is registered
	bound  atomic.Pointer[binding]
}

// binding is a plugin that is registered: its model's columns on one *gorm.DB,
// and its Config with the defaults filled in.
type binding struct {
	*columns
	root     *gorm.DB
	format   tokenFormat
	hashers  []Hasher
	idleTime time.Duration
	lifetime time.Duration // 0: no absolute timeout
	touch    time.Duration
	foreign  bool

	maxPerOwner int // 0: no limit
	onLimit     LimitPolicy
	grace       time.Duration
	retention   time.Duration
	onEvent     func(context.Context, Event)

	plans   plans
	caching *caching // nil: no cache

	endedBy          []*schema.Field
	skipLocked       bool // the database knows FOR UPDATE SKIP LOCKED
	chains           []*chain
	creates, queries *chain   // among them
	strayKeys        []string // foreign keys that GORM may have made beside the one
}

var _ gorm.Plugin = (*Plugin[Base])(nil)

// New makes the plugin for the session model T, which embeds [Session] or
// [Base]. (P follows from T: write New[UserSession](config).) The Config is checked
// when the plugin is registered with db.Use. A plugin is for one *gorm.DB, and each T
// has one plugin there.
func New[T any, P interface {
	*T
	Model
}](config Config) *Plugin[T] {
	return &Plugin[T]{core: &core{config: config, model: reflect.TypeFor[T]()}}
}

// Name implements [gorm.Plugin]. It differs for each T; so db.Use refuses a
// second plugin for the same T with gorm.ErrRegistered.
func (p *Plugin[T]) Name() string { return pluginName(p.core.model) }

func pluginName(model reflect.Type) string {
	return "gormsessions:" + model.PkgPath() + "." + model.Name()
}

// Initialize implements [gorm.Plugin]; db.Use calls it. It checks the Config and
// the model, migrates the table unless SkipMigrate is set, and registers the
// callbacks. When it fails, nothing stays registered.
func (p *Plugin[T]) Initialize(db *gorm.DB) error {
	p.core.mu.Lock()
	defer p.core.mu.Unlock()
	if b := p.core.bound.Load(); b != nil {
		if db.Plugins[p.Name()] == gorm.Plugin(p) {
			return nil // dbresolver opens its pools with all plugins of the *gorm.DB
		}
		return fmt.Errorf("gormsessions: the plugin for %s is registered already: each *gorm.DB takes one of its own", b.schema.Name)
	}
	if err := p.core.config.validate(); err != nil {
		return err
	}
	b, err := bind(p.core, db.Session(&gorm.Session{NewDB: true}))
	if err != nil {
		return err
	}
	if !p.core.config.SkipMigrate {
		if err := b.migrate(b.root); err != nil {
			return fmt.Errorf("gormsessions: migrate %s: %w", b.schema.Table, err)
		}
	}
	if err := b.register(); err != nil {
		return err
	}
	if b.caching != nil {
		if err := b.caching.Open(b.root, b.caching.tables); err != nil {
			b.unregister()
			return fmt.Errorf("gormsessions: Config.Cache: %w", err)
		}
	}
	p.core.bound.Store(b)
	return nil
}

func bind(c *core, db *gorm.DB) (*binding, error) {
	stmt := &gorm.Statement{DB: db}
	if err := stmt.Parse(reflect.New(c.model).Interface()); err != nil {
		return nil, fmt.Errorf("gormsessions: GORM does not take %s for a model (its owner needs a primary key of one column): %w", c.model.Name(), err)
	}
	cols, err := columnsOf(stmt.Schema)
	if err != nil {
		return nil, err
	}
	if err := cols.check(); err != nil {
		return nil, err
	}
	for _, other := range db.Plugins {
		if r, ok := other.(registered); ok && r.binding() != nil && r.binding().schema.Table == cols.schema.Table {
			return nil, fmt.Errorf("gormsessions: the table %s of %s belongs to the plugin for %s already: give one of them a TableName",
				cols.schema.Table, cols.schema.Name, r.binding().schema.Name)
		}
	}
	b := &binding{
		columns:  cols,
		root:     db,
		format:   c.config.tokenFormat(),
		hashers:  c.config.hashers(),
		idleTime: c.config.idleTimeout(),
		touch:    c.config.touchInterval(),
		foreign:  c.config.AcceptForeign,

		maxPerOwner: c.config.MaxPerOwner,
		onLimit:     c.config.OnLimit,
		grace:       c.config.rotationGrace(),
		retention:   c.config.Retention,
		onEvent:     c.config.OnEvent,
	}
	if c.config.AbsoluteTimeout != Never {
		b.lifetime = c.config.AbsoluteTimeout
	}
	if err := b.checkLimit(); err != nil {
		return nil, err
	}
	if name := b.retiredTable().Name[strings.LastIndexByte(b.retiredTable().Name, '.')+1:]; len(name) > maxName {
		return nil, fmt.Errorf("gormsessions: the table %s, beside that of %s, has a name of %d bytes, and databases take %d: give %s a shorter TableName",
			name, b.schema.Name, len(name), maxName, b.schema.Name)
	}
	if err := b.fitDialect(); err != nil {
		return nil, err
	}
	b.endedBy = b.findEndedBy()
	b.initPlans()
	b.initCaching(c.config.Cache)
	return b, nil
}

// registered is a Plugin of any T, as GORM's list of plugins holds it.
type registered interface{ binding() *binding }

func (p *Plugin[T]) binding() *binding { return p.core.bound.Load() }

func registeredFor(db *gorm.DB, model reflect.Type) *binding {
	if r, ok := db.Plugins[pluginName(model)].(registered); ok {
		if b := r.binding(); b != nil && b.schema.ModelType == model {
			return b
		}
	}
	return nil
}

// With returns the plugin inside the caller's transaction or session: all it
// does then goes through tx, and conditions on tx limit it too. A tx that is nil,
// or of another *gorm.DB, makes every method return [ErrNotRegistered].
//
// Authenticate before a transaction at REPEATABLE READ, MySQL's default, not inside
// one: it reads sessions as they were when it first looked, and so finds one that was
// revoked meanwhile.
func (p *Plugin[T]) With(tx *gorm.DB) *Plugin[T] {
	return &Plugin[T]{core: p.core, with: true, tx: tx}
}

// call is one call of a method: the binding, and the statement to start from.
// Each chain on db is a statement of its own.
type call struct {
	*binding
	db *gorm.DB
}

const (
	readReplica = "gorm:db_resolver:read" // settings of gorm.io/plugin/dbresolver
	readPrimary = "gorm:db_resolver:write"
)

// begin names the columns one by one, so that a column which a newer node adds
// breaks no prepared statement; and reads from the primary, unless the caller has
// asked for a replica: one behind would still accept a revoked session.
func (p *Plugin[T]) begin(ctx context.Context) (call, error) {
	b, db, err := p.from()
	if err != nil {
		return call{}, err
	}
	// Clauses first: a hook's *gorm.DB still holds the statement that ran the hook.
	db = db.Clauses().Session(&gorm.Session{Context: ctx, QueryFields: true}).Model(new(T))
	if _, replica := db.Get(readReplica); !replica {
		db = db.Set(readPrimary, struct{}{})
	}
	db = enclose(db)
	unprepared(db.Statement)
	return call{b, db.Session(&gorm.Session{})}, nil
}

// from is the binding, and what a call goes through: the *gorm.DB that the plugin is
// registered on, or With's.
func (p *Plugin[T]) from() (*binding, *gorm.DB, error) {
	b := p.core.bound.Load()
	switch {
	case b == nil, p.with && (p.tx == nil || p.tx.Callback() != b.root.Callback()):
		return nil, nil, ErrNotRegistered
	case p.with:
		return b, p.tx, nil
	}
	return b, b.root, nil
}

// onPrimary is db for a transaction of the plugin's own, which begins where dbresolver
// has the sessions written. GORM would begin it on the pool that the *gorm.DB was opened
// with, or on the replica that the caller has asked for; and dbresolver leaves what
// runs inside where it is.
func (b *binding) onPrimary(db *gorm.DB) *gorm.DB {
	db = db.Session(&gorm.Session{Context: db.Statement.Context}) // its Config and Statement are copies
	resolve := db.Callback().Query().Get("gorm:db_resolver")
	if _, conn := db.Statement.ConnPool.(*sql.Conn); resolve == nil || conn {
		return db
	}
	asked := db.Model(b.value()).Set(readPrimary, struct{}{})
	resolve(asked)
	db.Statement.ConnPool = asked.Statement.ConnPool
	return db
}

// unprepared takes a statement past GORM's cache of prepared statements, inside a
// transaction: there a statement waits for whoever prepares the same one, who may
// wait for a connection; and when transactions hold them all, for ever.
func unprepared(stmt *gorm.Statement) {
	if tx, ok := stmt.ConnPool.(*gorm.PreparedStmtTX); ok {
		stmt.ConnPool = tx.Tx
		stmt.Settings.Store(preparedTx, tx)
	}
}

const preparedTx = "gormsessions:prepared_tx" // what unprepared has taken off

// Create does what db.Create does: it stores a new session. The value then has
// its ID, its times and its Token, the only copy of the secret; if it fails,
// the value is as it was. Inside a transaction of the caller's the token is
// good once that commits.
//
// Errors: [ErrZeroOwner], [ErrWrongOwner], [ErrInvalidValue], [ErrTooManySessions]
// with Config.MaxPerOwner, and [ErrUnsafeCreate] for a value that was created before.
func (p *Plugin[T]) Create(ctx context.Context, session *T) error {
	c, err := p.begin(ctx)
	if err != nil {
		return err
	}
	if session == nil {
		return errNilSession
	}
	if c.inTransaction() || c.db.SkipDefaultTransaction && c.maxPerOwner == 0 {
		return wrap("create", c.db.Create(session).Error)
	}
	if c.alone(session) {
		db := c.db.Session(&gorm.Session{SkipDefaultTransaction: true})
		return wrap("create", c.retry(func() error { return db.Create(session).Error }))
	}
	// GORM's own transaction would stay open if a hook panicked.
	before := *session
	err = c.retry(func() error {
		err := c.transaction(func(c call) error { return c.db.Create(session).Error }, c.isolation()...)
		if err != nil {
			*session = before
		}
		return err
	})
	return wrap("create", err)
}

// Authenticate returns the active session of a token, or [ErrNoSession]. It
// looks it up by its digest, in one query, with [WithOwner] the owner's row
// included.
//
// A second, guarded statement extends the session and notes its use, when that is
// due: on the first use, and then as Config.TouchInterval says. It also runs for a
// session that was found by a hasher other than the first, which then gets the first
// one's digest. The session is returned as it then is.
//
// A token that [Plugin.Rotate] has replaced finds the session during
// Config.RotationGrace. After that it is [ErrReused], which matches ErrNoSession, and
// the session is revoked.
//
// Scopes limit further: a session that they leave out is no session. A token
// that is not of the plugin's format costs no query. Scopes cannot choose columns
// (Select, Omit): what is not read cannot be judged.
//
// An extension that fails, on a read-only database say, is logged by GORM's
// logger, and a session that still reads as active is returned all the same. Inside
// the caller's transaction it is an error, since it ends the transaction on
// PostgreSQL; in a read-only one call Lookup.
func (p *Plugin[T]) Authenticate(ctx context.Context, token string, scopes ...Scope) (*T, error) {
	if session := p.cached(ctx, token, scopes, true); session != nil {
		return session, nil
	}
	b, digests, err := p.present(token)
	if err != nil {
		return nil, err
	}
	session, retired, err := p.findOrEnd(ctx, digests, scopes, false)
	if err != nil {
		return nil, wrap("authenticate", err)
	}
	base, now := sessionIn(session), p.now()
	defer func() { retired.presented(base) }()
	digest := base.TokenDigest
	if retired == nil && b.touch != Never {
		digest = digests[0]
	}
	aged := !bytes.Equal(base.TokenDigest, digest)
	if !aged && !b.due(base, now) {
		return session, nil
	}
	c, err := p.begin(ctx)
	if err != nil {
		return nil, err
	}
	won, err := c.use(base, now, digest, !aged)
	switch {
	case err != nil && (ctx.Err() != nil || c.inTransaction()):
		return nil, wrap("authenticate", err)
	case err != nil:
		c.db.Logger.Warn(ctx, "gormsessions: session %s is active, but noting its use failed: %v", base.ID, err)
	case won:
		c.send(c.db, c.eventOf(EventExtended, session, now, ""))
		return session, nil
	}
	// Somebody else may have written it in between: what they left counts.
	session, retired, err = p.findOrEnd(ctx, digests, scopes, true)
	if err != nil {
		return nil, wrap("authenticate", err)
	}
	base = sessionIn(session)
	return session, nil
}

// Lookup is Authenticate without any write: it extends nothing, and where it returns
// [ErrReused] it has not revoked the session.
func (p *Plugin[T]) Lookup(ctx context.Context, token string, scopes ...Scope) (*T, error) {
	if session := p.cached(ctx, token, scopes, false); session != nil {
		return session, nil
	}
	_, digests, err := p.present(token)
	if err != nil {
		return nil, err
	}
	session, retired, err := p.find(ctx, digests, scopes, false)
	if err != nil {
		return nil, wrap("lookup", err)
	}
	retired.presented(sessionIn(session))
	return session, nil
}

// present makes the digests of a token. One that cannot be valid ends the call here,
// before anything that costs.
func (p *Plugin[T]) present(token string) (*binding, digests, error) {
	b, _, err := p.from()
	if err != nil {
		return nil, nil, err
	}
	digests := b.digests(token)
	if len(digests) == 0 {
		return nil, nil, ErrNoSession
	}
	return b, digests, nil
}

func (p *Plugin[T]) now() time.Time {
	_, db, err := p.from()
	if err != nil {
		return stored(time.Now())
	}
	return nowOf(db)
}

// findOrEnd is find, and revokes a session whose earlier token came back.
func (p *Plugin[T]) findOrEnd(ctx context.Context, digests digests, scopes []Scope, again bool) (*T, *retiredToken, error) {
	session, retired, err := p.find(ctx, digests, scopes, again)
	if err == ErrReused {
		var c call
		if c, err = p.begin(ctx); err == nil {
			err = p.reused(c, session)
		}
	}
	return session, retired, err
}

// find looks up the active session of a token, and that token if it was rotated
// away. A session that comes with ErrReused is to be revoked. To look again is to
// see what others have committed meanwhile.
func (p *Plugin[T]) find(ctx context.Context, digests digests, scopes []Scope, again bool) (session *T, _ *retiredToken, err error) {
	b, _, err := p.from()
	if err != nil {
		return nil, nil, err
	}
	var read uint64
	caching := b.caching != nil && !p.with && !again
	if caching {
		read = b.caching.Clock()
	}
	err = errIndirect
	if !again {
		session, err = p.lookupDirect(ctx, digests, scopes)
	}
	held := func() bool {
		if err != nil || !digests.hold(sessionIn(session).TokenDigest) {
			return false
		}
		if caching {
			p.keep(b, session, scopes, digests, read)
		}
		return true
	}
	if held() {
		return session, nil, nil
	}
	c, failed := p.begin(ctx)
	if failed != nil {
		return nil, nil, failed
	}
	if again {
		c = c.current()
	}
	if err == errIndirect {
		if session, err = p.lookup(c, c.digestIn(digests), scopes); held() {
			return session, nil, nil
		}
	}
	if err != nil && err != ErrNoSession {
		return nil, nil, err
	}
	return p.afterRotation(c, digests, scopes)
}

// lookupDirect is lookup by a fixed statement, or errIndirect.
func (p *Plugin[T]) lookupDirect(ctx context.Context, digests digests, scopes []Scope) (*T, error) {
	b, db, err := p.from()
	if err != nil {
		return nil, err
	}
	plan := b.planFor(scopes)
	if plan == nil {
		return nil, errIndirect
	}
	if p.with {
		db = db.Clauses() // as begin
	}
	session, now := new(T), nowOf(db)
	if err := b.direct(ctx, db, plan, digests, now, session); err != nil {
		return nil, err
	}
	base := sessionIn(session)
	base.inUTC()
	if !base.activeAt(now) {
		return nil, ErrNoSession
	}
	return session, nil
}

// lookup takes the active session that is meets, within the scopes.
func (p *Plugin[T]) lookup(c call, is clause.Expression, scopes []Scope) (*T, error) {
	db, now := c.db, nowOf(c.db)
	for _, scope := range scopes {
		db = scope(db)
	}
	session, stmt, err := p.take(and(and(db.Clauses(), is), c.active(now)))
	if err != nil {
		return nil, err
	}
	// A scope may run others only now, after the conditions above.
	if where, ok := stmt.Clauses["WHERE"].Expression.(clause.Where); !ok || slices.ContainsFunc(where.Exprs, alternative) {
		return nil, fmt.Errorf("%w: a scope with an Or of its own cannot be used here", ErrInvalidValue)
	}
	if !sessionIn(session).activeAt(now) {
		return nil, ErrNoSession
	}
	return session, nil
}

// alternative reports whether a condition is joined to those before it by OR.
func alternative(expr clause.Expression) bool {
	or, ok := expr.(clause.OrConditions)
	return ok && len(or.Exprs) == 1
}

// Get returns the session that the scopes limit to, in whatever state, the
// newest if there are several, or [ErrNoSession]. Scopes cannot choose columns.
func (p *Plugin[T]) Get(ctx context.Context, scopes ...Scope) (*T, error) {
	c, err := p.begin(ctx)
	if err != nil {
		return nil, err
	}
	session, _, err := p.take(c.db.Scopes(scopes...).Scopes(c.newestFirst))
	return session, wrap("get", err)
}

// Count returns how many sessions the scopes limit to; with no scope, all.
func (p *Plugin[T]) Count(ctx context.Context, scopes ...Scope) (int64, error) {
	c, err := p.begin(ctx)
	if err != nil {
		return 0, err
	}
	var n int64
	err = c.db.Scopes(scopes...).Count(&n).Error
	return n, wrap("count", err)
}

// Extend pushes the session's expiry now, as a use does, without waiting for the
// TouchInterval: to now + IdleTimeout, but never past its Deadline, and never back. A
// fixed expiry stays; the use is noted all the same. The value then has the times that
// are stored. [ErrNoSession] if the session has ended.
func (p *Plugin[T]) Extend(ctx context.Context, session *T) error {
	return p.rewrite(ctx, "extend", session, func(c call, row *T, now time.Time) (bool, error) {
		base := sessionIn(row)
		if !base.activeAt(now) {
			return false, ErrNoSession
		}
		won, err := c.use(base, now, base.TokenDigest, false)
		if won {
			c.send(c.db, c.eventOf(EventExtended, row, now, ""))
		}
		return won, err
	})
}

// SetExpiry sets when the session expires; nil: never. From then on the expiry
// is fixed (IdleTimeout is 0): no use moves it. Where it would be past the session's
// Deadline, the Deadline is taken in its place. A time that has come ends the session;
// one in the future makes an expired session valid again, but never a revoked one.
//
// A session that is made valid again counts as a new one for Config.MaxPerOwner: others
// make room for it, or it is refused with [ErrTooManySessions]. [ErrNoSession] if the
// session is revoked or gone.
func (p *Plugin[T]) SetExpiry(ctx context.Context, session *T, expiresAt *time.Time) error {
	expiry, err := storedTime("expiresAt", expiresAt)
	if err != nil {
		return err
	}
	return p.rewrite(ctx, "set expiry", session, func(c call, row *T, now time.Time) (won bool, err error) {
		base := sessionIn(row)
		if base.RevokedAt != nil {
			return false, ErrNoSession
		}
		next := *base
		next.ExpiresAt, next.IdleTimeout, next.UpdatedAt = expiry, 0, now
		next.capExpiry()
		write := func(c call) error {
			var err error
			won, err = c.write(base, next, clause.Set{
				{Column: column(c.expiresAt), Value: next.ExpiresAt},
				{Column: column(c.idle), Value: next.IdleTimeout},
			}, c.notRevoked())
			if won {
				c.send(c.db, c.eventOf(EventExtended, row, now, ""))
			}
			return err
		}
		if c.maxPerOwner > 0 && !base.activeAt(now) && next.activeAt(now) {
			err = c.transaction(func(c call) error {
				if err := c.makeRoomFor(row, next, now); err != nil {
					return err
				}
				return write(c)
			}, c.isolation()...)
			return won, err
		}
		err = write(c)
		return won, err
	})
}

// rewrite changes one session by a guarded write: the stored row is read, and
// read again if somebody else changed it in between.
func (p *Plugin[T]) rewrite(ctx context.Context, op string, session *T, write func(call, *T, time.Time) (bool, error)) error {
	c, err := p.begin(ctx)
	if err != nil {
		return err
	}
	if session == nil {
		return errNilSession
	}
	base := sessionIn(session)
	if base.ID == uuid.Nil {
		return errUnsaved
	}
	for range 10 {
		row, _, err := p.take(c.db.Where(clause.Eq{Column: at(c.id), Value: base.ID}))
		if err != nil {
			return wrap(op, err)
		}
		won, err := write(c, row, nowOf(c.db))
		if err != nil && (c.inTransaction() || !deadlocked(err)) {
			return wrap(op, err)
		}
		if err == nil && won {
			current := sessionIn(row)
			current.Data = base.Data
			if current.Token == "" { // not rotated now
				current.Token = base.Token
				if len(base.TokenDigest) > 0 && !bytes.Equal(base.TokenDigest, current.TokenDigest) {
					current.TokenDigest, current.AuthenticatedAt = base.TokenDigest, base.AuthenticatedAt
				}
			}
			*base = *current
			return nil
		}
		c = c.current()
	}
	return fmt.Errorf("gormsessions: %s: session %s kept changing: try again", op, base.ID)
}

// Revoke ends the sessions that the scopes limit to, at once and for good, and
// returns how many it ended, expired and soft-deleted ones among them. One that was
// revoked before is not counted, and keeps its time and reason. The reason is for
// people and logs; more than 255 characters are [ErrInvalidValue].
//
// Scopes that limit nothing, or only by Except, are [ErrNoScope]. Joins (WithOwner is
// one), limits and other tables are [ErrInvalidValue] here.
func (p *Plugin[T]) Revoke(ctx context.Context, reason string, scopes ...Scope) (int64, error) {
	c, err := p.begin(ctx)
	if err != nil {
		return 0, err
	}
	if err := checkText("the reason", reason); err != nil {
		return 0, err
	}
	if n := utf8.RuneCountInString(reason); n > maxReason {
		return 0, fmt.Errorf("%w: the reason has %d characters, at most %d fit", ErrInvalidValue, n, maxReason)
	}
	if len(scopes) == 0 {
		return 0, ErrNoScope
	}
	where, err := c.conditions(scopes, new([]T))
	if err != nil {
		return 0, wrap("revoke", err)
	}
	var rows int64
	err = c.retry(func() error {
		rows, err = c.end(where, reason, nowOf(c.db))
		return err
	})
	return rows, wrap("revoke", err)
}

// end revokes the sessions that are not, and says so: to name them, to the application
// and to the cache, they are read first.
func (c call) end(where clause.Expression, reason string, now time.Time) (rows int64, err error) {
	still := c.notRevoked()
	revoke := func(c call, where clause.Expression) error {
		n, err := c.update(c.db.Unscoped().Where(where).Where(still), clause.Set{
			{Column: column(c.revokedAt), Value: now},
			{Column: column(c.revokedReason), Value: reason},
			{Column: column(c.updatedAt), Value: now},
		})
		rows += n
		return err
	}
	if c.onEvent == nil && c.caching == nil {
		err = revoke(c, where)
		return rows, err
	}
	err = c.transaction(func(c call) error {
		rows = 0 // of a try before
		if err := c.lockWrites(); err != nil {
			return err
		}
		columns := []string{c.id.DBName}
		if c.ownerID != nil {
			columns = append(columns, c.ownerID.DBName)
		}
		asked := c.db.Session(&gorm.Session{SkipHooks: true}).Unscoped().Select(columns).Where(where).Where(still).Order(clause.OrderByColumn{Column: at(c.id)})
		if c.db.Name() != "sqlite" {
			asked = asked.Clauses(clause.Locking{Strength: "UPDATE"})
		}
		list := reflect.New(reflect.SliceOf(c.schema.ModelType))
		if err := asked.Find(list.Interface()).Error; err != nil {
			return err
		}
		ids := make([]any, list.Elem().Len())
		for i := range ids {
			ids[i] = sessionAt(list.Elem().Index(i)).ID
			c.send(c.db, c.event(EventRevoked, list.Elem().Index(i), now, reason))
		}
		for some := range slices.Chunk(ids, 1000) { // databases limit the parameters of a statement
			if err := revoke(c, clause.IN{Column: at(c.id), Values: some}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		rows = 0
	}
	return rows, err
}

// conditions is what scopes ask for. That is only known once GORM has run them
// all, the nested ones too: so a query is built, and not run.
func (c call) conditions(scopes []Scope, dest any) (clause.Expression, error) {
	db := c.db
	for _, scope := range scopes { // here, and not in the dry run: one may ask the database itself
		db = scope(db)
	}
	asked := db.Session(&gorm.Session{DryRun: true, SkipHooks: true}).Unscoped().Find(dest)
	if asked.Error != nil {
		return nil, asked.Error
	}
	own := c.db.Statement.Table
	if own == "" {
		own = c.schema.Table[strings.LastIndexByte(c.schema.Table, '.')+1:]
	}
	if asked.Statement.Table != own {
		return nil, fmt.Errorf("%w: a scope with a Table of its own cannot be used here", ErrInvalidValue)
	}
	clauses := asked.Statement.Clauses
	if from, _ := clauses["FROM"].Expression.(clause.From); len(asked.Statement.Joins) > 0 || len(from.Joins) > 0 {
		return nil, errJoins
	}
	for _, name := range []string{"LIMIT", "GROUP BY"} {
		if _, ok := clauses[name]; ok {
			return nil, fmt.Errorf("%w: a scope with %s cannot be used here", ErrInvalidValue, name)
		}
	}
	where, _ := clauses["WHERE"].Expression.(clause.Where)
	if !slices.ContainsFunc(where.Exprs, func(e clause.Expression) bool { _, only := e.(exception); return !only }) {
		return nil, ErrNoScope
	}
	return group(where.Exprs), nil
}

// take runs a query for one session, with all columns: those that a scope leaves
// out would read as never revoked and never to expire.
func (p *Plugin[T]) take(db *gorm.DB) (*T, *gorm.Statement, error) {
	session := new(T)
	found := db.Limit(1).Find(session)
	stmt := found.Statement
	if found.Error != nil {
		return nil, stmt, found.Error
	}
	columns, _ := stmt.Clauses["SELECT"].Expression.(clause.Select)
	if len(stmt.Selects) > 0 || len(stmt.Omits) > 0 || columns.Expression != nil || len(columns.Columns) < len(stmt.Schema.DBNames) {
		return nil, stmt, fmt.Errorf("%w: a scope with Select or Omit cannot be used here", ErrInvalidValue)
	}
	if found.RowsAffected == 0 {
		return nil, stmt, ErrNoSession
	}
	sessionIn(session).inUTC()
	return session, stmt, nil
}

// retry runs fn again when the database ended it for a deadlock with another, which
// is over then. In a transaction of the caller's that is the caller's to do.
func (c call) retry(fn func() error) error {
	for range 4 {
		if err := fn(); err == nil || !deadlocked(err) || c.inTransaction() {
			return err
		}
	}
	return fn()
}

// deadlocked recognises the SQLSTATEs of PostgreSQL and MySQL for a transaction that
// was ended for the sake of another.
func deadlocked(err error) bool {
	text := err.Error()
	return strings.Contains(text, "SQLSTATE 40P01") || strings.Contains(text, "SQLSTATE 40001") || strings.Contains(text, "(40001)")
}

func (c call) inTransaction() bool {
	_, ok := c.db.Statement.ConnPool.(gorm.TxCommitter)
	return ok
}

// current makes the next query read what is committed now: inside a transaction
// MySQL's plain reads see the table as it was when the transaction began.
// (PostgreSQL's do so too if it is told to; its UPDATE has failed then.)
func (c call) current() call {
	if c.db.Name() != "mysql" || !c.inTransaction() {
		return c
	}
	return call{c.binding, c.db.Clauses(clause.Locking{Strength: "UPDATE"}).Session(&gorm.Session{})}
}

func (b *binding) newestFirst(db *gorm.DB) *gorm.DB {
	if _, ordered := db.Statement.Clauses["ORDER BY"]; ordered {
		return db
	}
	return db.Order(clause.OrderByColumn{Column: at(b.createdAt), Desc: true}).
		Order(clause.OrderByColumn{Column: at(b.id), Desc: true})
}

// due reports whether a use now is to be written.
func (b *binding) due(base *Base, now time.Time) bool {
	if b.touch == Never {
		return false
	}
	return base.LastUsedAt == nil || !now.Before(base.LastUsedAt.Add(b.interval(base)))
}

// interval is the time between two writes: at least two fall into a session's
// idle timeout, or it would expire between them.
func (b *binding) interval(base *Base) time.Duration {
	if base.slides() {
		return min(b.touch, base.IdleTimeout/2)
	}
	return b.touch
}

// use writes that the session is used now, extends it, and gives it digest. It
// reports false where the row is no longer what base says: ended, fixed or
// digested anew by somebody else, or (once) used within the interval.
func (c call) use(base *Base, now time.Time, digest Digest, once bool) (bool, error) {
	next := *base
	next.LastUsedAt, next.UpdatedAt, next.TokenDigest = &now, now, digest
	set := clause.Set{{Column: column(c.lastUsedAt), Value: now}}
	if !bytes.Equal(digest, base.TokenDigest) {
		set = append(set, clause.Assignment{Column: column(c.digest), Value: digest})
	}
	if base.slides() && base.ExpiresAt != nil {
		if pushed := stored(now.Add(base.IdleTimeout)); pushed.After(*base.ExpiresAt) {
			next.ExpiresAt = &pushed
			next.capExpiry()
			set = append(set, clause.Assignment{Column: column(c.expiresAt), Value: next.ExpiresAt})
		}
	}
	guard := []clause.Expression{
		c.notRevoked(), c.notExpired(now),
		c.digestIn(digests{base.TokenDigest}),
		clause.Eq{Column: at(c.idle), Value: base.IdleTimeout},
	}
	if once {
		guard = append(guard, unit("? IS NULL OR ? <= ?", at(c.lastUsedAt), at(c.lastUsedAt), now.Add(-c.interval(base))))
	}
	return c.write(base, next, set, guard...)
}

// write makes the row be next, where the guard still holds, and then base too.
func (c call) write(base *Base, next Base, set clause.Set, guard ...clause.Expression) (bool, error) {
	// MySQL counts the rows that change, not those that match.
	same := next.UpdatedAt.Equal(base.UpdatedAt) && sameTime(next.LastUsedAt, base.LastUsedAt) &&
		sameTime(next.ExpiresAt, base.ExpiresAt) && next.IdleTimeout == base.IdleTimeout &&
		bytes.Equal(next.TokenDigest, base.TokenDigest)
	if !same {
		set = append(set, clause.Assignment{Column: column(c.updatedAt), Value: next.UpdatedAt})
		db := c.db.Where(clause.Eq{Column: at(c.id), Value: base.ID}).Clauses(clause.Where{Exprs: guard})
		if rows, err := c.update(db, set); err != nil || rows == 0 {
			return false, err
		}
	}
	*base = next
	return true, nil
}

// update runs an UPDATE of the plugin's own, in one statement and without the
// application's hooks, which would be given a value that is no session.
func (c call) update(db *gorm.DB, set clause.Set) (int64, error) {
	if err := c.intact(); err != nil {
		return 0, err
	}
	tx := db.Session(&gorm.Session{SkipHooks: true, SkipDefaultTransaction: true}).
		Set(ownUpdate, c.binding).Clauses(set).Updates(map[string]any{})
	return tx.RowsAffected, tx.Error
}

// digests are those of one token, by each hasher.
type digests []Digest

// digests are what to look a token up by; none for one that cannot be valid.
func (b *binding) digests(token string) digests {
	if !b.possible(token) {
		return nil
	}
	if len(b.hashers) == 1 { // in one allocation
		one := &struct {
			list [1]Digest
			sum  [maxDigest]byte
		}{}
		if one.list[0] = digestTo(one.sum[:0], b.hashers[0], token); len(one.list[0]) == 0 {
			return nil
		}
		return one.list[:]
	}
	list := make(digests, 0, len(b.hashers))
	for _, h := range b.hashers {
		if d := h.Digest(token); len(d) > 0 {
			list = append(list, d)
		}
	}
	return list
}

// possible reports whether a token can be valid.
func (b *binding) possible(token string) bool {
	return len(token) > 0 && len(token) <= maxToken && (b.format.matches(token) || b.foreign && visible(token))
}

func (d digests) hold(stored Digest) bool {
	found := 0
	for _, one := range d {
		found |= subtle.ConstantTimeCompare(one, stored)
	}
	return found == 1
}

func (c *columns) digestIn(list digests) clause.Expression {
	if len(list) == 1 {
		return clause.Eq{Column: at(c.digest), Value: list[0]}
	}
	values := make([]any, len(list))
	for i, d := range list {
		values[i] = d
	}
	return clause.IN{Column: at(c.digest), Values: values}
}

// sessionIn is SessionBase of a *T, which New has checked to be a Model.
func sessionIn[T any](session *T) *Base { return any(session).(Model).SessionBase() }

// wrap names the operation that the database failed in. The package's own errors
// say it themselves.
func wrap(op string, err error) error {
	if err == nil || strings.HasPrefix(err.Error(), "gormsessions: ") {
		return err
	}
	return fmt.Errorf("gormsessions: %s: %w", op, err)
}
