package gormsessions

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"

	"gorm.io/gorm"
	"gorm.io/gorm/clause"
	"gorm.io/gorm/logger"
)

// lockWait is how long a node waits for another that migrates.
const lockWait = time.Minute

// Migrate creates what the model needs and the database lacks: the sessions'
// table, its columns, indexes and foreign key; the owner's table where there is
// none (an existing one is never altered); on PostgreSQL the schema that a
// TableName names. Registering the plugin has done it already, unless
// Config.SkipMigrate is set.
//
// Many nodes may start at once: one migrates, the others wait for it (an
// advisory lock on PostgreSQL, GET_LOCK on MySQL, BEGIN IMMEDIATE on SQLite).
// With a session in DryRun mode it prints the statements and runs none:
//
//	sessions.With(db.Session(&gorm.Session{DryRun: true})).Migrate(ctx)
func (p *Plugin[T]) Migrate(ctx context.Context) error {
	c, err := p.begin(ctx)
	if err != nil {
		return err
	}
	return wrap("migrate", c.migrate(p.bare(c)))
}

// Drop removes the sessions' table, with all sessions: Migrate's way back. The
// owner's table stays.
func (p *Plugin[T]) Drop(ctx context.Context) error {
	c, err := p.begin(ctx)
	if err != nil {
		return err
	}
	drop := func(tx *gorm.DB) error { return tx.Migrator().DropTable(c.value()) }
	db := p.bare(c)
	if db.DryRun {
		return wrap("drop", drop(printing(db)))
	}
	return wrap("drop", exclusively(db, drop))
}

// bare is the call's *gorm.DB without its model, which GORM's migrator would
// take for a table's name of its own.
func (p *Plugin[T]) bare(c call) *gorm.DB {
	return c.db.Session(&gorm.Session{NewDB: true, Context: c.db.Statement.Context})
}

func (b *binding) value() any { return reflect.New(b.schema.ModelType).Interface() }

func (b *binding) migrate(db *gorm.DB) error {
	if db.DryRun {
		query := db.Session(&gorm.Session{})
		query.DryRun = false
		return b.createMissing(query, printing(db), db)
	}
	return exclusively(db, func(tx *gorm.DB) error { return b.createMissing(tx, tx, tx) })
}

// createMissing asks by query what there is, and creates the rest by exec.
// alter is for AutoMigrate, which prints a dry run by itself.
func (b *binding) createMissing(query, exec, alter *gorm.DB) error {
	for _, table := range b.tables() {
		if name, _, qualified := strings.Cut(table, "."); qualified && query.Name() == "postgres" {
			if err := exec.Exec("CREATE SCHEMA IF NOT EXISTS ?", clause.Table{Name: name}).Error; err != nil {
				return err
			}
		}
	}
	if b.owner != nil {
		owner := reflect.New(b.owner.FieldSchema.ModelType).Interface()
		if !query.Migrator().HasTable(owner) {
			// Without its own associations, whose tables may not be there yet:
			// the application's AutoMigrate adds them.
			if err := without(exec, true).Migrator().CreateTable(owner); err != nil {
				return fmt.Errorf("create the owner's table %s: %w", b.owner.FieldSchema.Table, err)
			}
		}
	}
	session := b.value()
	if !query.Migrator().HasTable(session) {
		return exec.Migrator().CreateTable(session)
	}
	// AutoMigrate with associations would alter the tables of others.
	if err := without(alter, false).Migrator().AutoMigrate(session); err != nil {
		return err
	}
	return b.constrain(query, exec)
}

// constrain adds the foreign keys that an existing table lacks.
func (b *binding) constrain(query, exec *gorm.DB) error {
	if query.DisableForeignKeyConstraintWhenMigrating || query.IgnoreRelationshipsWhenMigrating {
		return nil
	}
	session := b.value()
	if b.strayKey != "" && query.Migrator().HasConstraint(session, b.strayKey) {
		if err := exec.Migrator().DropConstraint(session, b.strayKey); err != nil {
			return err
		}
	}
	for _, rel := range b.schema.Relationships.Relations {
		if rel.Field.IgnoreMigration {
			continue
		}
		c := rel.ParseConstraint()
		if c == nil || c.Schema != b.schema || query.Migrator().HasConstraint(session, c.Name) {
			continue
		}
		if err := exec.Migrator().CreateConstraint(session, c.Name); err != nil {
			return err
		}
	}
	return nil
}

func (b *binding) tables() []string {
	list := []string{b.schema.Table}
	if b.owner != nil {
		list = append(list, b.owner.FieldSchema.Table)
	}
	return list
}

// cascade makes the foreign key one that deletes the sessions of a deleted
// owner, also where the owner's struct has the has-many side: GORM makes the key
// from that side then, under its name and without the belongs-to's settings.
func (b *binding) cascade() {
	if b.owner == nil {
		return
	}
	for _, rel := range b.schema.Relationships.Relations {
		if rel == b.owner || rel.FieldSchema != b.schema || len(rel.References) != 1 || rel.References[0].ForeignKey != b.ownerID {
			continue
		}
		name := b.root.NamingStrategy.RelationshipFKName(*b.owner)
		if c := rel.ParseConstraint(); c != nil && c.Name != name {
			b.strayKey = c.Name // as GORM's own AutoMigrate may have made it before
		}
		rel.Field.TagSettings["CONSTRAINT"] = name + ",OnUpdate:CASCADE,OnDelete:CASCADE"
	}
}

// without is db, with GORM told to leave out foreign keys or all associations.
func without(db *gorm.DB, keysOnly bool) *gorm.DB {
	tx := db.Session(&gorm.Session{}) // its Config is a copy
	if keysOnly {
		tx.DisableForeignKeyConstraintWhenMigrating = true
	} else {
		tx.IgnoreRelationshipsWhenMigrating = true
	}
	return tx
}

// fitDialect gives the columns their types on this database, and refuses a
// connection that could not keep times.
func (b *binding) fitDialect() error {
	b.cascade()
	switch b.root.Name() {
	case "postgres":
		b.id.DataType = "uuid"
	case "mysql":
		b.id.DataType = "char(36) character set ascii collate ascii_bin"
		if b.root.DryRun {
			return nil
		}
		var version string
		var moment any
		row := b.root.Raw("SELECT VERSION(), CAST('2006-01-02 15:04:05' AS DATETIME)").Row()
		if err := row.Scan(&version, &moment); err != nil {
			return fmt.Errorf("gormsessions: ask MySQL for its version: %w", err)
		}
		if hasUUID(version) {
			b.id.DataType = "uuid"
		}
		at, ok := moment.(time.Time)
		if !ok {
			return errors.New("gormsessions: the MySQL connection does not read times: add parseTime=true to its DSN")
		}
		if clocksChange(at.Location()) {
			return fmt.Errorf("gormsessions: the MySQL connection keeps times in %v, where clocks change and an hour each year is ambiguous: set loc=UTC in its DSN", at.Location())
		}
	}
	return nil
}

// hasUUID reports whether a server of MySQL's kind has the type uuid: MariaDB
// from 10.7 on, and MySQL not.
func hasUUID(version string) bool {
	var major, minor int
	_, err := fmt.Sscanf(version, "%d.%d", &major, &minor)
	return err == nil && strings.Contains(version, "MariaDB") && (major > 10 || major == 10 && minor >= 7)
}

func clocksChange(zone *time.Location) bool {
	year := time.Now().Year()
	_, first := time.Date(year, 1, 1, 0, 0, 0, 0, zone).Zone()
	for month := range 24 {
		if _, offset := time.Date(year, time.Month(1+month), 1, 0, 0, 0, 0, zone).Zone(); offset != first {
			return true
		}
	}
	return false
}

// exclusively runs fn while no other node runs it on this database.
func exclusively(db *gorm.DB, fn func(tx *gorm.DB) error) error {
	switch db.Name() {
	case "postgres":
		return db.Transaction(func(tx *gorm.DB) error {
			const key = 0x676f726d73657373 // "gormsess"
			if err := tx.Exec("SELECT pg_advisory_xact_lock(?)", int64(key)).Error; err != nil {
				return err
			}
			return fn(tx)
		})
	case "mysql":
		return onOneConnection(db, func(tx *gorm.DB) error { return withNamedLock(tx, fn) })
	case "sqlite":
		if _, ok := db.Statement.ConnPool.(gorm.TxCommitter); ok {
			return db.Transaction(fn)
		}
		return onOneConnection(db, func(tx *gorm.DB) error { return immediately(tx, fn) })
	}
	return fn(db)
}

// withNamedLock holds MySQL's lock for this database; the server's locks are
// shared by all databases.
func withNamedLock(tx *gorm.DB, fn func(*gorm.DB) error) (err error) {
	const name = "CONCAT('gormsessions:', SHA1(DATABASE()))"
	wait := lockWait
	if deadline, ok := tx.Statement.Context.Deadline(); ok {
		wait = min(wait, time.Until(deadline))
	}
	var got *int
	if err := tx.Raw("SELECT GET_LOCK("+name+", ?)", wait.Seconds()).Row().Scan(&got); err != nil {
		return err
	}
	if got == nil || *got != 1 {
		return fmt.Errorf("another node held the migration lock for %v", wait)
	}
	defer func() {
		ctx := context.WithoutCancel(tx.Statement.Context)
		err = errors.Join(err, tx.WithContext(ctx).Exec("DO RELEASE_LOCK("+name+")").Error)
	}()
	return fn(tx)
}

// immediately runs fn in a transaction that has SQLite's write lock from its
// start: one that first reads and then writes can only fail when another node
// wrote in between.
func immediately(tx *gorm.DB, fn func(*gorm.DB) error) (err error) {
	end := tx.WithContext(context.WithoutCancel(tx.Statement.Context))
	var before int
	if err := tx.Raw("PRAGMA busy_timeout").Row().Scan(&before); err != nil {
		return err
	}
	if err := tx.Exec(fmt.Sprintf("PRAGMA busy_timeout = %d", lockWait.Milliseconds())).Error; err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, end.Exec(fmt.Sprintf("PRAGMA busy_timeout = %d", before)).Error)
	}()
	if err := tx.Exec("BEGIN IMMEDIATE").Error; err != nil {
		return err
	}
	committed := false
	defer func() {
		if !committed {
			err = errors.Join(err, end.Exec("ROLLBACK").Error)
		}
	}()
	if err := fn(tx); err != nil {
		return err
	}
	if err := tx.Exec("COMMIT").Error; err != nil {
		return err
	}
	committed = true
	return nil
}

// oneConnection looks like a transaction to GORM and its plugins, so that none of
// them begins one on it, or takes a statement elsewhere.
type oneConnection struct{ gorm.ConnPool }

func (oneConnection) Commit() error   { return nil }
func (oneConnection) Rollback() error { return nil }

func onOneConnection(db *gorm.DB, fn func(tx *gorm.DB) error) (err error) {
	ctx := db.Statement.Context
	tx := db.Session(&gorm.Session{Context: ctx}) // its Statement is a copy
	if _, ok := db.Statement.ConnPool.(gorm.TxCommitter); ok {
		return fn(tx)
	}
	pool, err := db.DB()
	if err != nil {
		return err
	}
	conn, err := pool.Conn(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	tx.Statement.ConnPool = oneConnection{conn}
	return fn(tx)
}

// printing is a dry run's *gorm.DB that prints the statements, as GORM's own
// AutoMigrate does.
func printing(db *gorm.DB) *gorm.DB {
	return db.Session(&gorm.Session{Logger: printer{db.Logger}})
}

type printer struct{ logger.Interface }

func (printer) Trace(_ context.Context, _ time.Time, statement func() (string, int64), _ error) {
	sql, _ := statement()
	fmt.Println(sql + ";")
}
