// Package pgnotify tells caches of each change of the sessions' table and of their
// owners', on PostgreSQL 12 or later: a [sessioncache.DatabaseBus].
//
//	cache, err := sessioncache.New(sessioncache.Config{Bus: pgnotify.New(pgnotify.Config{})})
//
// Triggers on the two tables notify, within the transaction that changes a row and
// whoever changes it; each node listens on a connection of its own. A change is
// heard some milliseconds after it is committed.
//
// # What is guaranteed
//
// A node proves that it hears by a notification to itself, four times in
// [sessioncache.Config.Lease]. PostgreSQL delivers notifications in the order in
// which their transactions were committed, so one that comes back proves that
// everything committed before it was sent has been heard. With the same statement
// it looks whether the triggers are still there, enabled and of this version.
// Without proof the node serves nothing from its cache once the lease, 1 second, is
// over: when the connection or the server is gone, when the network swallows what
// is sent, when somebody has removed the triggers. It then connects anew, and
// starts empty. (While the whole machine is suspended, a lease does not run out.)
//
// Not noticed is what fires no trigger: DDL (a dropped partition, say), and
// triggers that somebody disables and enables again between two proofs.
//
// # What it costs
//
// A notification is sent with each UPDATE or DELETE of a session (at most one each
// TouchInterval for a session's use, and those of Rotate, Revoke and the like) and
// of an owner whose row really changed; none with an INSERT. An owners' table with
// a column that each request writes leaves the cache little to do: keep such a
// column elsewhere. Transactions that notify are committed one after the other, by
// a lock of PostgreSQL's own, and cannot be prepared (PREPARE TRANSACTION). The
// proofs of a node take four transactions a second, which write nothing to disk at
// once.
//
// The listening connection is one more for each cache and node. It has to reach
// PostgreSQL itself: pgbouncer's transaction and statement pooling cannot listen;
// there, name the server in [Config.DSN]. The triggers and the application's
// queries may go through pgbouncer.
//
// # Owners' keys
//
// A notification names the owner by the text of its key, where that is an integer,
// a uuid, a text or a varchar (of a deterministic collation), shorter than 1,000
// bytes. With any other key, each change of any owner ends all that is cached.
package pgnotify

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gormsessions/gormsessions"
	"github.com/gormsessions/gormsessions/sessioncache"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"
	"github.com/jackc/pgx/v5/stdlib"
	"gorm.io/gorm"
)

// Config is how a [Bus] connects. Its zero value is a good default.
type Config struct {
	// DSN is where the listening connection goes, as pgx reads it: the same
	// database as the *gorm.DB's, which is proven each time. Default: as the
	// connections of the *gorm.DB, which then have to be pgx's, as those of
	// gorm.io/driver/postgres are.
	DSN string

	// BeforeConnect may change what is connected with, each time: for passwords
	// that do not last. Default: none.
	BeforeConnect func(context.Context, *pgx.ConnConfig) error
}

// Bus hears what changes in the tables of one plugin. Make one for each cache.
type Bus struct {
	config Config

	mu     sync.Mutex
	pool   *sql.DB // nil: not opened
	tables gormsessions.CacheTables
}

var _ sessioncache.DatabaseBus = (*Bus)(nil)

// New makes a Bus. A Config that is wrong, and a database that is not PostgreSQL, are
// errors when the plugin is registered.
func New(config Config) *Bus { return &Bus{config: config} }

const (
	// patience in heartbeats, and at least: after so long without a proof the
	// connection is given up.
	patience    = 20
	minPatience = 5 * time.Second
	// openWait is how long Open asks for a connection, to look at its driver.
	openWait = 5 * time.Second
	// closeWait is how long PostgreSQL is given to be told that a connection ends.
	closeWait = 100 * time.Millisecond
)

func onPostgreSQL(db *gorm.DB) error {
	if name := db.Name(); name != "postgres" {
		return fmt.Errorf("pgnotify: the database is %s, not PostgreSQL: leave sessioncache.Config.Bus out there, or take another", name)
	}
	return nil
}

// Open checks that it can listen to the database of db. A database that is down
// is no error. For the cache.
func (b *Bus) Open(db *gorm.DB, tables gormsessions.CacheTables) error {
	if err := onPostgreSQL(db); err != nil {
		return err
	}
	pool, err := db.DB()
	if err != nil {
		return fmt.Errorf("pgnotify: %w", err)
	}
	ctx, cancel := context.WithTimeout(db.Statement.Context, openWait)
	defer cancel()
	if b.config.DSN != "" {
		if _, err := pgx.ParseConfig(b.config.DSN); err != nil {
			return fmt.Errorf("pgnotify: Config.DSN: %w", err)
		}
	} else if conn, err := pool.Conn(ctx); err == nil {
		_, err := configOf(conn)
		if err := errors.Join(err, conn.Close()); err != nil {
			return err
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.pool != nil {
		return errors.New("pgnotify: the Bus belongs to another cache: make one for each")
	}
	b.pool, b.tables = pool, tables
	return nil
}

// configOf is what a connection of pgx's was made with.
func configOf(conn *sql.Conn) (config *pgx.ConnConfig, err error) {
	err = conn.Raw(func(driver any) error {
		c, ok := driver.(*stdlib.Conn)
		if !ok {
			return fmt.Errorf("pgnotify: the *gorm.DB's connections are a %T, not pgx's: set Config.DSN", driver)
		}
		config = c.Conn().Config() // a copy
		return nil
	})
	return config, err
}

// Publish does nothing: the triggers do.
func (b *Bus) Publish(context.Context, []gormsessions.CacheTag) error { return nil }

// Listen hears the triggers' notifications, until ctx ends or the connection
// fails. For the cache.
func (b *Bus) Listen(ctx context.Context, to sessioncache.Listener) (err error) {
	b.mu.Lock()
	pool, tables := b.pool, b.tables
	b.mu.Unlock()
	if pool == nil {
		return errors.New("pgnotify: the Bus is not open")
	}
	beat := to.Heartbeat()
	patience := max(patience*beat, minPatience)
	setup, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	config, install, err := b.prepare(setup, pool, tables)
	if err != nil {
		return err
	}
	net := newNetwork(config.DialFunc)
	defer net.close()
	config.DialFunc = net.dial
	config.BuildContextWatcherHandler = func(c *pgconn.PgConn) ctxwatch.Handler {
		return &pgconn.DeadlineContextWatcherHandler{Conn: c.Conn()}
	}
	l := &listening{
		to: to, install: install, patience: patience,
		node: "gormsessions_" + strings.ToLower(rand.Text()),
		sent: map[string]time.Time{},
	}
	config.OnNotification = l.notified
	if l.conn, err = pgconn.ConnectConfig(setup, &config.Config); err != nil {
		return fmt.Errorf("pgnotify: connect: %w", err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), closeWait)
		defer cancel()
		_ = l.conn.Close(ctx) // the server finds out, sooner or later
		net.close()
		<-l.conn.CleanupDone()
	}()
	if err := l.conn.Exec(setup, "LISTEN "+install.channel+"; LISTEN "+l.node).Close(); err != nil {
		return fmt.Errorf("pgnotify: listen: %w", err)
	}
	// What the application's own connections say has to be heard here: a DSN of
	// another server would hear itself for ever.
	if _, err := pool.ExecContext(setup, "SELECT pg_catalog.pg_notify($1, $2)", l.node, first); err != nil {
		return fmt.Errorf("pgnotify: notify: %w", err)
	}
	return l.run(ctx, beat)
}

// prepare asks the application's database how to connect and what for.
func (b *Bus) prepare(ctx context.Context, pool *sql.DB, tables gormsessions.CacheTables) (config *pgx.ConnConfig, _ *installation, err error) {
	conn, err := pool.Conn(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("pgnotify: connect: %w", err)
	}
	defer func() { _ = conn.Close() }()
	if b.config.DSN != "" {
		config, err = pgx.ParseConfig(b.config.DSN)
	} else {
		config, err = configOf(conn)
	}
	if err != nil {
		return nil, nil, err
	}
	if b.config.BeforeConnect != nil {
		if err := b.config.BeforeConnect(ctx, config); err != nil {
			return nil, nil, fmt.Errorf("pgnotify: Config.BeforeConnect: %w", err)
		}
	}
	install, err := plan(ctx, conn, tables)
	if err != nil {
		return nil, nil, err
	}
	return config, install, nil
}

// first is the notification that comes from the application's pool; those of the
// listening connection are numbered from 1.
const first = "0"

// listening is one connection that listens.
type listening struct {
	to       sessioncache.Listener
	install  *installation
	patience time.Duration
	conn     *pgconn.PgConn
	node     string // the channel of its proofs

	number int
	sent   map[string]time.Time // proofs that are not back, and with triggers that are there
	heard  []string             // proofs that are back
	joined bool                 // the application's pool was heard
}

// notified is called with each notification, in their order, by the goroutine of
// run.
func (l *listening) notified(_ *pgconn.PgConn, n *pgconn.Notification) {
	switch {
	case n.Channel == l.install.channel && n.Payload == "":
		l.to.Heard(gormsessions.EveryTag)
	case n.Channel == l.install.channel:
		l.to.Heard(gormsessions.CacheTag(n.Payload))
	case n.Channel == l.node && n.Payload == first:
		l.joined = true
	case n.Channel == l.node:
		l.heard = append(l.heard, n.Payload)
	}
}

func (l *listening) run(ctx context.Context, beat time.Duration) error {
	next, proven := time.Now(), time.Now()
	for {
		if wait := time.Until(next); wait <= 0 {
			sent := time.Now()
			if err := l.beat(ctx, sent); err != nil {
				return err
			}
			next = sent.Add(beat)
		} else if err := l.wait(ctx, wait); err != nil {
			return err
		}
		for _, number := range l.heard {
			sent, ok := l.sent[number]
			switch {
			case !ok: // not this connection's
			case !l.joined:
				return errors.New("pgnotify: the listening connection does not hear the *gorm.DB's: is Config.DSN another database?")
			default:
				l.to.Alive(sent)
				proven = sent
			}
			delete(l.sent, number)
		}
		l.heard = l.heard[:0]
		if time.Since(proven) > l.patience {
			return fmt.Errorf("pgnotify: no notification was heard for %v: is a pooler between that cannot listen?", l.patience)
		}
	}
}

// beat sends a proof, and looks whether the triggers are there.
func (l *listening) beat(ctx context.Context, sent time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, l.patience)
	defer cancel()
	l.number++
	number := strconv.Itoa(l.number)
	results, err := l.conn.Exec(ctx, "SELECT pg_catalog.pg_notify('"+l.node+"', '"+number+"'), ("+l.install.missing()+")").ReadAll()
	if err != nil {
		return fmt.Errorf("pgnotify: notify: %w", err)
	}
	if missing := string(results[0].Rows[0][1]); missing != "0" {
		return l.install.errMissing()
	}
	l.sent[number] = sent
	return nil
}

// wait reads notifications for a while.
func (l *listening) wait(ctx context.Context, d time.Duration) error {
	waiting, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	err := l.conn.WaitForNotification(waiting)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case l.conn.IsClosed() || waiting.Err() == nil:
		return fmt.Errorf("pgnotify: the connection is gone: %w", err)
	}
	return nil
}

// network makes connections that can all be closed at once: a driver that gives one
// up would else go on for a while.
type network struct {
	next   pgconn.DialFunc
	ctx    context.Context
	cancel context.CancelFunc

	mu    sync.Mutex
	conns []net.Conn
}

func newNetwork(next pgconn.DialFunc) *network {
	ctx, cancel := context.WithCancel(context.Background())
	return &network{next: next, ctx: ctx, cancel: cancel}
}

func (n *network) dial(ctx context.Context, network, address string) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(n.ctx, cancel)()
	conn, err := n.next(ctx, network, address)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ctx.Err() != nil {
		return nil, errors.Join(n.ctx.Err(), conn.Close())
	}
	n.conns = append(n.conns, conn)
	return conn, nil
}

func (n *network) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cancel()
	for _, conn := range n.conns {
		_ = conn.Close() // some are closed already
	}
	n.conns = nil
}
