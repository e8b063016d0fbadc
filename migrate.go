package gormsessions

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"gorm.io/gorm"
	"gorm.io/gorm/clause"
)

// lockWait is how long a node waits for another that migrates.
const lockWait = time.Minute

// Migrate creates what the model needs and the database lacks:
//
//   - the sessions' table, its columns, indexes, checks and foreign keys;
//   - the table of the tokens that Rotate replaced, of the same name with
//     _retired_tokens;
//   - the owner's table, where there is none (an existing one is never altered);
//   - on PostgreSQL the schema that a TableName names;
//   - what Config.Cache needs.
//
// It changes no column that is there: for another type or size write a migration.
// Registering the plugin has done all this already, unless Config.SkipMigrate is set.
//
// Many nodes may start at once: one migrates, the others wait for it (by an
// advisory lock on PostgreSQL, GET_LOCK on MySQL, BEGIN IMMEDIATE on SQLite, the
// last two for a minute at most). With a session in DryRun mode it prints the
// statements to standard output and runs none:
//
//	sessions.With(db.Session(&gorm.Session{DryRun: true})).Migrate(ctx)
func (p *Plugin[T]) Migrate(ctx context.Context) error {
	c, err := p.begin(ctx)
	if err != nil {
		return err
	}
	return wrap("migrate", c.migrate(p.bare(c)))
}

// Drop removes the sessions' table and that of the retired tokens, with all
// sessions: Migrate's way back. The
// owner's table stays.
func (p *Plugin[T]) Drop(ctx context.Context) error {
	c, err := p.begin(ctx)
	if err != nil {
		return err
	}
	return wrap("drop", exclusively(c.onPrimary(p.bare(c)), func(tx *gorm.DB) error {
		if c.caching != nil {
			if err := c.caching.Drop(tx, c.caching.tables); err != nil {
				return err
			}
		}
		for _, table := range []clause.Table{c.retiredTable(), {Name: c.schema.Table}} {
			if err := tx.Exec("DROP TABLE IF EXISTS ?", table).Error; err != nil {
				return err
			}
		}
		return nil
	}))
}

// bare is the call's *gorm.DB without its model, which GORM's migrator would
// take for a table's name of its own.
func (p *Plugin[T]) bare(c call) *gorm.DB {
	return c.db.Session(&gorm.Session{NewDB: true, Context: c.db.Statement.Context})
}

func (b *binding) value() any { return reflect.New(b.schema.ModelType).Interface() }

func (b *binding) migrate(db *gorm.DB) error { return exclusively(b.onPrimary(db), b.createMissing) }

func (b *binding) createMissing(tx *gorm.DB) error {
	for _, table := range b.tables() {
		if name, _, qualified := strings.Cut(table, "."); qualified && tx.Name() == "postgres" {
			var n int64 // asked first: to create one needs a right that the role may lack
			if err := tx.Raw("SELECT count(*) FROM pg_namespace WHERE nspname = ?", name).Scan(&n).Error; err != nil {
				return err
			}
			if n > 0 {
				continue
			}
			if err := tx.Exec("CREATE SCHEMA ?", clause.Table{Name: name}).Error; err != nil {
				return err
			}
		}
	}
	if b.owner != nil {
		owner := reflect.New(b.owner.FieldSchema.ModelType).Interface()
		if !tx.Migrator().HasTable(owner) {
			// Without its own foreign keys, to tables that may not be there yet:
			// the application's AutoMigrate adds them.
			bare := tx.Session(&gorm.Session{}) // its Config is a copy
			bare.DisableForeignKeyConstraintWhenMigrating = true
			if err := bare.Migrator().CreateTable(owner); err != nil {
				return fmt.Errorf("create the owner's table %s: %w", b.owner.FieldSchema.Table, err)
			}
		}
	}
	if err := tx.Statement.Context.Err(); err != nil { // HasTable has no errors
		return err
	}
	if err := b.referred(tx); err != nil {
		return err
	}
	if !tx.Migrator().HasTable(b.value()) {
		if err := tx.Migrator().CreateTable(b.value()); err != nil {
			return err
		}
	} else if err := b.complete(tx); err != nil {
		return err
	}
	if err := b.createRetired(tx); err != nil || b.caching == nil {
		return err
	}
	return b.caching.Migrate(tx, b.caching.tables)
}

// referred names a table that the sessions' own associations refer to and that
// is not there. The databases' errors do not, or come much later.
func (b *binding) referred(tx *gorm.DB) error {
	if _, dry := tx.Statement.ConnPool.(printer); dry || !keysWanted(tx) {
		return nil
	}
	for _, rel := range b.schema.Relationships.Relations {
		c := rel.ParseConstraint()
		if c == nil || rel.Field.IgnoreMigration || c.Schema != b.schema || c.ReferenceSchema == b.schema ||
			b.owner != nil && c.ReferenceSchema.Table == b.owner.FieldSchema.Table {
			continue
		}
		if !tx.Migrator().HasTable(reflect.New(c.ReferenceSchema.ModelType).Interface()) {
			return fmt.Errorf("%s refers to %s, but there is no table %s: migrate that model before the plugin is registered",
				b.schema.Name, c.ReferenceSchema.Name, c.ReferenceSchema.Table)
		}
	}
	return nil
}

// complete adds what an existing table lacks. It is AutoMigrate without the other
// tables that this would alter, and without changing columns: GORM finds a
// difference at every start where a database has another name for a type, and
// SQLite makes the table anew for it.
func (b *binding) complete(tx *gorm.DB) error {
	session, m := b.value(), tx.Migrator()
	types, err := m.ColumnTypes(session)
	if err != nil {
		return err
	}
	for _, name := range b.schema.DBNames {
		there := slices.ContainsFunc(types, func(t gorm.ColumnType) bool { return t.Name() == name })
		if there || b.schema.FieldsByDBName[name].IgnoreMigration {
			continue
		}
		if err := m.AddColumn(session, name); err != nil {
			return fmt.Errorf("add the column %s (where there are sessions, it has to be nullable or have a default): %w", name, err)
		}
	}
	// Before the indexes: SQLite makes the table anew to change a constraint.
	if err := b.constrain(tx); err != nil {
		return err
	}
	for _, index := range b.schema.ParseIndexes() {
		if !m.HasIndex(session, index.Name) {
			if err := m.CreateIndex(session, index.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// constrain adds the constraints that an existing table lacks, and makes the
// owner's foreign key one that cascades.
func (b *binding) constrain(tx *gorm.DB) error {
	var drop, create []string
	session, m := b.value(), tx.Migrator()
	for name := range b.schema.ParseCheckConstraints() {
		if !m.HasConstraint(session, name) {
			create = append(create, name)
		}
	}
	if keysWanted(tx) {
		for _, name := range b.strayKeys {
			if m.HasConstraint(session, name) {
				drop = append(drop, name)
			}
		}
		for _, rel := range b.schema.Relationships.Relations {
			c := rel.ParseConstraint()
			if rel.Field.IgnoreMigration || c == nil || c.Schema != b.schema {
				continue
			}
			if m.HasConstraint(session, c.Name) {
				if len(c.ForeignKeys) != 1 || c.ForeignKeys[0] != b.ownerID || b.owner == nil {
					continue
				}
				if cascades, err := b.cascades(tx, c.Name); err != nil {
					return err
				} else if cascades {
					continue
				}
				drop = append(drop, c.Name)
			}
			create = append(create, c.Name)
		}
	}
	if len(drop) == 0 && len(create) == 0 {
		return nil
	}
	if err := rebuildable(tx); err != nil {
		return err
	}
	for _, name := range drop {
		if err := m.DropConstraint(session, name); err != nil {
			return err
		}
	}
	for _, name := range create {
		if err := m.CreateConstraint(session, name); err != nil {
			return err
		}
	}
	return nil
}

// rebuildable refuses a change that SQLite makes by building the table anew, where
// foreign keys are enforced meanwhile: what refers to the sessions would be
// deleted with the old table.
func rebuildable(tx *gorm.DB) error {
	if tx.Name() != "sqlite" {
		return nil
	}
	if enforced, err := foreignKeysEnforced(tx); err != nil || !enforced {
		return err
	}
	return errors.New("the constraints of an existing table cannot be changed inside a transaction on SQLite: call Migrate outside of one")
}

// foreignKeysEnforced asks a connection of SQLite, which has them off by default.
func foreignKeysEnforced(tx *gorm.DB) (enforced bool, err error) {
	err = tx.Raw("PRAGMA foreign_keys").Scan(&enforced).Error
	return enforced, err
}

// cascades reports whether the foreign key of that name deletes the sessions of
// a deleted owner. GORM makes one that does not where the owner has the has-many
// side and its AutoMigrate ran before the plugin was registered.
func (b *binding) cascades(tx *gorm.DB, name string) (bool, error) {
	var query string
	args := []any{name}
	switch tx.Name() {
	case "sqlite":
		query, args = `SELECT on_delete = 'CASCADE' FROM pragma_foreign_key_list(?) WHERE "from" = ?`, []any{b.schema.Table, b.ownerID.DBName}
	case "postgres":
		query = "SELECT confdeltype = 'c' FROM pg_constraint WHERE conname = ? AND conrelid = to_regclass(?)"
		args = append(args, tx.Statement.Quote(clause.Table{Name: b.schema.Table}))
	case "mysql":
		query = "SELECT delete_rule = 'CASCADE' FROM information_schema.referential_constraints WHERE constraint_name = ? AND constraint_schema = DATABASE()"
	default:
		return true, nil
	}
	cascades := true // also on a database that does not tell
	err := tx.Raw(query, args...).Scan(&cascades).Error
	return cascades, err
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
	first := true
	for _, name := range slices.Sorted(maps.Keys(b.schema.Relationships.Relations)) {
		rel := b.schema.Relationships.Relations[name]
		if rel == b.owner || rel.FieldSchema != b.schema || len(rel.References) != 1 || rel.References[0].ForeignKey != b.ownerID {
			continue
		}
		key := b.root.NamingStrategy.RelationshipFKName(*rel)
		if c := rel.ParseConstraint(); c != nil {
			key = c.Name
		}
		if first {
			rel.Field.TagSettings["CONSTRAINT"] = key + ",OnUpdate:CASCADE,OnDelete:CASCADE"
			first = false
			continue
		}
		// One key is enough; another of GORM's would not cascade.
		rel.Field.TagSettings["CONSTRAINT"] = "-"
		b.strayKeys = append(b.strayKeys, key)
	}
}

// fitDialect gives the columns their types on this database, and refuses a
// connection that could not keep times.
func (b *binding) fitDialect() error {
	b.cascade()
	defer func() { // GORM has copied the type it took to what refers to a session
		for _, rel := range b.schema.Relationships.Relations {
			for _, ref := range rel.References {
				if ref.PrimaryKey == b.id {
					ref.ForeignKey.DataType = b.id.DataType
				}
			}
		}
	}()
	b.indexRevoked()
	switch b.root.Name() {
	case "postgres":
		b.skipLocked = true
		b.id.DataType = "uuid"
		for _, c := range b.base() { // six digits are its own precision
			(*c.field).Precision = 0
		}
	case "mysql":
		b.id.DataType = "char(36) character set ascii collate ascii_bin"
		version, moment, err := askMySQL(b.root)
		if err != nil {
			return fmt.Errorf("gormsessions: ask MySQL for its version: %w", err)
		}
		if hasUUID(version) {
			b.id.DataType = "uuid"
		}
		b.skipLocked = hasSkipLocked(version)
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

// indexRevoked keeps the index that Prune finds revoked sessions by to those, where
// the database can: the others then pay nothing for it.
func (b *binding) indexRevoked() {
	if name := b.root.Name(); name != "postgres" && name != "sqlite" {
		return
	}
	condition := b.root.Statement.Quote(clause.Column{Name: b.revokedAt.DBName}) + " IS NOT NULL"
	b.revokedAt.Tag = reflect.StructTag(fmt.Sprintf("gorm:%q", strings.TrimSuffix(b.revokedAt.Tag.Get("gorm"), ";index")+";index:,where:"+condition))
}

// askMySQL asks a server for its version, and the connection for a time.
func askMySQL(db *gorm.DB) (version string, moment any, err error) {
	query := db.Session(&gorm.Session{}) // its Config is a copy
	query.DryRun = false
	rows, err := query.Raw("SELECT VERSION(), CAST('2006-01-02 15:04:05' AS DATETIME)").Rows()
	if err != nil {
		return "", nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	if rows.Next() {
		err = rows.Scan(&version, &moment)
	}
	return version, moment, errors.Join(err, rows.Err())
}

// hasUUID reports whether a server of MySQL's kind has the type uuid: MariaDB
// from 10.7 on, and MySQL not.
func hasUUID(version string) bool {
	return strings.Contains(version, "MariaDB") && versionFrom(version, 10, 7)
}

// hasSkipLocked reports whether it knows FOR UPDATE SKIP LOCKED: MariaDB from
// 10.6 on, and MySQL from 8.0.
func hasSkipLocked(version string) bool {
	if strings.Contains(version, "MariaDB") {
		return versionFrom(version, 10, 6)
	}
	return versionFrom(version, 8, 0)
}

func versionFrom(version string, major, minor int) bool {
	var a, b int
	_, err := fmt.Sscanf(version, "%d.%d", &a, &b)
	return err == nil && (a > major || a == major && b >= minor)
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
func exclusively(db *gorm.DB, fn func(tx *gorm.DB) error) (err error) {
	if db.DryRun {
		return fn(printing(db))
	}
	defer func() { // drivers say in many words that a context has ended
		ended := db.Statement.Context.Err()
		if deadline, ok := db.Statement.Context.Deadline(); ok && ended == nil && !time.Now().Before(deadline) {
			ended = context.DeadlineExceeded // its timer is a little late
		}
		if err != nil && ended != nil && !errors.Is(err, ended) {
			err = fmt.Errorf("%w: %w", ended, err)
		}
	}()
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
	var got int
	if err := tx.Raw("SELECT COALESCE(GET_LOCK("+name+", ?), 0)", wait.Seconds()).Scan(&got).Error; err != nil {
		return err
	}
	if got != 1 {
		return fmt.Errorf("another node held the migration lock for %v", wait)
	}
	defer func() { err = errors.Join(err, detached(tx).Exec("DO RELEASE_LOCK("+name+")").Error) }()
	return fn(tx)
}

// immediately runs fn in a transaction that has SQLite's write lock from its
// start: one that first reads and then writes can only fail when another node
// wrote in between. Foreign keys are off meanwhile, which they must be where a
// table is built anew, and cannot be once the transaction has begun.
func immediately(tx *gorm.DB, fn func(*gorm.DB) error) (err error) {
	wait := lockWait
	if deadline, ok := tx.Statement.Context.Deadline(); ok {
		// A little longer: that the context has ended is then what is reported.
		wait = max(0, min(wait, time.Until(deadline)+10*time.Millisecond))
	}
	for pragma, value := range map[string]int64{"busy_timeout": wait.Milliseconds(), "foreign_keys": 0} {
		restore, err2 := setPragma(tx, pragma, value)
		if err2 != nil {
			return err2
		}
		defer func() { err = errors.Join(err, restore()) }()
	}
	if err := tx.Exec("BEGIN IMMEDIATE").Error; err != nil {
		return err
	}
	committed := false
	defer func() {
		if !committed {
			err = errors.Join(err, detached(tx).Exec("ROLLBACK").Error)
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

// setPragma sets a connection's PRAGMA, and returns what sets it back.
func setPragma(tx *gorm.DB, name string, value int64) (restore func() error, err error) {
	var before int64
	if err := tx.Raw("PRAGMA " + name).Scan(&before).Error; err != nil {
		return nil, err
	}
	set := func(tx *gorm.DB, value int64) error {
		return tx.Exec(fmt.Sprintf("PRAGMA %s = %d", name, value)).Error
	}
	return func() error { return set(detached(tx), before) }, set(tx, value)
}

// detached is tx for what must be done though its context has ended.
func detached(tx *gorm.DB) *gorm.DB {
	return tx.WithContext(context.WithoutCancel(tx.Statement.Context))
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
	if conn, ok := db.Statement.ConnPool.(*sql.Conn); ok { // the caller's, by db.Connection
		tx.Statement.ConnPool = oneConnection{conn}
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

// printing is a session that asks the database, but prints what would change it,
// as a dry run of GORM's own AutoMigrate does.
func printing(db *gorm.DB) *gorm.DB {
	tx := db.Session(&gorm.Session{Context: db.Statement.Context}) // its Config and Statement are copies
	tx.DryRun = false
	tx.Statement.ConnPool = printer{oneConnection{db.Statement.ConnPool}, db}
	return tx
}

type printer struct {
	oneConnection
	db *gorm.DB
}

func (p printer) ExecContext(_ context.Context, query string, args ...any) (sql.Result, error) {
	fmt.Println(p.db.Explain(query, args...) + ";")
	return driver.RowsAffected(0), nil
}
