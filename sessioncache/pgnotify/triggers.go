package pgnotify

import (
	"context"
	"crypto/md5"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/gormsessions/gormsessions"
	"github.com/jackc/pgx/v5"
	"gorm.io/gorm"
)

// installation is what the tables of a plugin need: a function and two triggers on
// each of them.
type installation struct {
	sessions table
	channel  string // and the beginning of every other name
	triggers []trigger
}

// trigger is one of two of a table, and what pg_trigger has of it.
type trigger struct {
	table, name string // quoted, unquoted
	function    string
	body        string
	events      string
	kind        int
}

// The bits of pg_trigger.tgtype: 1 for each row, 8 delete, 16 update, 32 truncate.
const (
	rowKind      = 1 | 8 | 16
	truncateKind = 32
)

// plan finds out what to install where. A table that is not there yet is taken to
// become one of the kind that Migrate makes.
func plan(ctx context.Context, db gorm.ConnPool, tables gormsessions.CacheTables) (*installation, error) {
	sessions, err := resolve(ctx, db, tables.Sessions, tables.SessionKey)
	if err != nil {
		return nil, err
	}
	// The name of a channel, and of what else belongs to a table of sessions, is
	// of one length and differs in each schema.
	sum := sha256.Sum256([]byte(sessions.schema + "\x00" + sessions.name))
	p := &installation{sessions: sessions, channel: fmt.Sprintf("gormsessions_%x", sum[:16])}
	p.add(sessions, sessionKind, tables.SessionKey, slices.Contains([]string{"", "uuid"}, sessions.keyType))
	if tables.Owners != "" {
		owners, err := resolve(ctx, db, tables.Owners, tables.OwnerKey)
		if err != nil {
			return nil, err
		}
		exact := []string{"", "int2", "int4", "int8", "uuid", "text", "varchar"}
		p.add(owners, ownerKind, tables.OwnerKey, tables.OwnerKey != "" && slices.Contains(exact, owners.keyType))
	}
	return p, nil
}

// The first letter of a tag.
const (
	sessionKind = "s"
	ownerKind   = "o"
)

// function is in the schema of the sessions.
func (p *installation) function(kind string) string {
	return pgx.Identifier{p.sessions.schema, p.channel + "_" + kind}.Sanitize()
}

// add plans the triggers of a table. Rows are named by the text of their key if it
// is exact: if Go has the same text for it.
func (p *installation) add(t table, kind, key string, exact bool) {
	tag := func(row string) string {
		if !exact {
			return "'*'"
		}
		key := row + "." + pgx.Identifier{key}.Sanitize() + "::pg_catalog.text"
		return "CASE WHEN pg_catalog.octet_length(" + key + ") < 1000 THEN pg_catalog.concat('" + kind + "', " + key + ") ELSE '*' END"
	}
	notify := func(tag string) string { return "PERFORM pg_catalog.pg_notify('" + p.channel + "', " + tag + ")" }
	// *<> compares what is stored, of any type; json, say, has no equality.
	body := `
BEGIN
	-- Tells caches of the sessions in ` + strings.ReplaceAll(p.sessions.quoted(), "\n", " ") + ` what has changed.
	IF TG_OP = 'TRUNCATE' THEN
		` + notify("'*'") + `;
	ELSIF TG_OP = 'DELETE' THEN
		` + notify(tag("OLD")) + `;
	ELSIF OLD OPERATOR(pg_catalog.*<>) NEW THEN
		` + notify(tag("OLD")) + `;
		` + notify(tag("NEW")) + `;
	END IF;
	RETURN NULL;
END
`
	row := trigger{table: t.quoted(), function: p.function(kind), body: body}
	truncate := row
	row.name, row.kind, row.events = p.channel+"_"+kind+"_row", rowKind, "UPDATE OR DELETE ON "+row.table+" FOR EACH ROW"
	truncate.name, truncate.kind, truncate.events = p.channel+"_"+kind+"_all", truncateKind, "TRUNCATE ON "+row.table+" FOR EACH STATEMENT"
	p.triggers = append(p.triggers, row, truncate)
}

const quote = "$gormsessions$"

func (p *installation) statements() []string {
	var list []string
	for i, t := range p.triggers {
		if i == 0 || p.triggers[i-1].function != t.function {
			list = append(list, "CREATE OR REPLACE FUNCTION "+t.function+"() RETURNS trigger LANGUAGE plpgsql AS "+quote+t.body+quote)
		}
		name := pgx.Identifier{t.name}.Sanitize()
		list = append(list,
			"DROP TRIGGER IF EXISTS "+name+" ON "+t.table,
			"CREATE TRIGGER "+name+" AFTER "+t.events+" EXECUTE FUNCTION "+t.function+"()",
			// Also where rows come by replication.
			"ALTER TABLE "+t.table+" ENABLE ALWAYS TRIGGER "+name)
	}
	return list
}

// drops are the statements that remove it all, and tell caches of it: what becomes
// of the rows then, they do not hear.
func (p *installation) drops() []string {
	return []string{
		"DROP FUNCTION IF EXISTS " + p.function(sessionKind) + "() CASCADE",
		"DROP FUNCTION IF EXISTS " + p.function(ownerKind) + "() CASCADE",
		"SELECT pg_catalog.pg_notify('" + p.channel + "', '*')",
	}
}

// missing is a query for the number of triggers that are not there, disabled, or
// not of this version.
func (p *installation) missing() string {
	var there []string
	for _, t := range p.triggers {
		there = append(there, fmt.Sprintf("t.tgrelid = pg_catalog.to_regclass(%s) AND t.tgname = '%s' AND t.tgtype = %d AND pg_catalog.md5(f.prosrc) = '%x'",
			literal(t.table), t.name, t.kind, md5.Sum([]byte(t.body))))
	}
	return fmt.Sprintf("SELECT %d - pg_catalog.count(*) FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc f ON f.oid = t.tgfoid"+
		" WHERE t.tgenabled IN ('A', 'O') AND t.tgqual IS NULL AND t.tgattr::pg_catalog.text = '' AND (%s)", len(p.triggers), strings.Join(there, " OR "))
}

func (p *installation) errMissing() error {
	return fmt.Errorf("pgnotify: the triggers of %s are missing, disabled or of another version: call Migrate, or run what pgnotify.Statements returns", p.sessions.quoted())
}

func literal(s string) string {
	return " E'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'"
}

// table is one in its schema.
type table struct {
	schema, name string
	keyType      string // pg_catalog's name for it; empty where there is no table yet
}

func (t table) quoted() string { return pgx.Identifier{t.schema, t.name}.Sanitize() }

// resolve finds the table that a name means on this connection, and its key's type.
func resolve(ctx context.Context, db gorm.ConnPool, name, key string) (table, error) {
	var t table
	schema, rest, qualified := strings.Cut(name, ".")
	quoted := pgx.Identifier{name}
	if qualified {
		quoted = pgx.Identifier{schema, rest}
	}
	const asType = "CASE WHEN y.typnamespace = 'pg_catalog'::regnamespace AND COALESCE(l.collisdeterministic, true) THEN y.typname ELSE 'other' END"
	var keyType sql.NullString
	err := db.QueryRowContext(ctx, `SELECT n.nspname::text, c.relname::text, `+asType+`::text
		FROM pg_class c
		JOIN pg_namespace n ON n.oid = c.relnamespace
		LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = $2 AND NOT a.attisdropped AND a.attnum > 0
		LEFT JOIN pg_type y ON y.oid = a.atttypid
		LEFT JOIN pg_collation l ON l.oid = a.attcollation
		WHERE c.oid = to_regclass($1)`, quoted.Sanitize(), key).Scan(&t.schema, &t.name, &keyType)
	switch {
	case err == nil:
		t.keyType = keyType.String
		return t, nil
	case !errors.Is(err, sql.ErrNoRows):
		return t, fmt.Errorf("pgnotify: look for the table %s: %w", name, err)
	case qualified:
		return table{schema: schema, name: rest}, nil
	}
	var current sql.NullString
	if err := db.QueryRowContext(ctx, "SELECT current_schema()::text").Scan(&current); err != nil {
		return t, fmt.Errorf("pgnotify: ask for the current schema: %w", err)
	}
	if !current.Valid {
		return t, fmt.Errorf("pgnotify: there is no schema for the table %s: no schema of the search_path exists", name)
	}
	return table{schema: current.String, name: name}, nil
}

// Statements are those that Migrate runs where nothing is installed, for
// applications that migrate by hand. They may be run again. They name the tables
// in the schema that they are in, or would be made in, on this database:
//
//	pgnotify.Statements(db, gormsessions.CacheTables{
//		Sessions: "user_sessions", SessionKey: "id", Owners: "users", OwnerKey: "id"})
func Statements(db *gorm.DB, tables gormsessions.CacheTables) ([]string, error) {
	if err := onPostgreSQL(db); err != nil {
		return nil, err
	}
	p, err := plan(db.Statement.Context, db.Statement.ConnPool, tables)
	if err != nil {
		return nil, err
	}
	return p.statements(), nil
}

// migrationKey is the advisory lock that the plugin's own Migrate holds.
const migrationKey int64 = 0x676f726d73657373

// Migrate installs the triggers and their functions, or those of this version in
// place of others. It changes nothing where they are there. For the cache; the
// plugin's Migrate calls it.
func (b *Bus) Migrate(tx *gorm.DB, tables gormsessions.CacheTables) error {
	return exclusively(tx, func(tx *gorm.DB) error {
		p, err := plan(tx.Statement.Context, tx.Statement.ConnPool, tables)
		if err != nil {
			return err
		}
		var missing int
		if err := tx.Statement.ConnPool.QueryRowContext(tx.Statement.Context, p.missing()).Scan(&missing); err != nil {
			return fmt.Errorf("pgnotify: look for the triggers of %s: %w", p.sessions.quoted(), err)
		}
		if missing == 0 {
			return nil
		}
		return run(tx, p.statements())
	})
}

// Drop removes the triggers: both tables are as they were before. For the cache; the
// plugin's Drop calls it.
func (b *Bus) Drop(tx *gorm.DB, tables gormsessions.CacheTables) error {
	return exclusively(tx, func(tx *gorm.DB) error {
		p, err := plan(tx.Statement.Context, tx.Statement.ConnPool, tables)
		if err != nil {
			return err
		}
		return run(tx, p.drops())
	})
}

func run(tx *gorm.DB, statements []string) error {
	for _, statement := range statements {
		if err := tx.Exec(statement).Error; err != nil {
			return fmt.Errorf("pgnotify: %w", err)
		}
	}
	return nil
}

// exclusively runs fn in a transaction, while no other node runs it.
func exclusively(tx *gorm.DB, fn func(tx *gorm.DB) error) error {
	if err := onPostgreSQL(tx); err != nil {
		return err
	}
	if _, ok := tx.Statement.ConnPool.(gorm.TxCommitter); !ok {
		return tx.Transaction(func(tx *gorm.DB) error { return exclusively(tx, fn) })
	}
	rows, err := tx.Statement.ConnPool.QueryContext(tx.Statement.Context, "SELECT pg_advisory_xact_lock($1)", migrationKey)
	if err != nil {
		return fmt.Errorf("pgnotify: lock: %w", err)
	}
	if err := errors.Join(rows.Close(), rows.Err()); err != nil {
		return fmt.Errorf("pgnotify: lock: %w", err)
	}
	return fn(tx.Session(&gorm.Session{NewDB: true, Context: tx.Statement.Context}))
}
