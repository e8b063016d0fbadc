package gormsessions

import (
	"context"
	"database/sql"
	"errors"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"gorm.io/datatypes"
	"gorm.io/gorm"
	"gorm.io/gorm/callbacks"
	"gorm.io/gorm/clause"
	"gorm.io/gorm/schema"
)

// What Authenticate and Lookup ask never changes but for the digest and the time. So
// GORM's builder makes the statement once; then it is run again as it is, through
// GORM's callbacks as any query, and its row is scanned by setters that are chosen
// once too. What other plugins add to a statement they still add: then, and
// with scopes of the caller's, GORM builds it.

// errIndirect: this look-up is one for GORM's builder.
var errIndirect = errors.New("gormsessions: the statement was changed by another plugin, and is built anew")

// plan is a look-up's fixed statement.
type plan struct {
	sql    string
	vars   []any // those that are fixed; digests and times are marked
	filled []variable
	owner  *schema.Relationship // joined; nil: none
	fields []target
	rows   sync.Pool // of *row

	clauses, conditions int // that the model itself adds to every query (soft deletion)

	prepare  bool
	prepared atomic.Pointer[map[*sql.DB]*sql.Stmt]
}

// variable is one of a plan's variables that a call fills in: the time, or one of
// the digests.
type variable struct{ at, digest int }

const isTime = -1

// plan makes the fixed statement, or nil where there can be none.
func (b *binding) newPlan(owned bool) *plan {
	now := time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)
	list := make(digests, len(b.hashers))
	for i := range list {
		list[i] = Digest{byte(i)}
	}
	fresh := func() *gorm.DB {
		return b.root.Session(&gorm.Session{NewDB: true, QueryFields: true}).Model(b.value())
	}
	db := fresh()
	if owned {
		db = WithOwner(db)
	}
	db = and(and(db.Clauses(), b.digestIn(list)), b.active(now)).Limit(1)
	stmt := db.Statement
	stmt.Dest = stmt.Model
	stmt.ReflectValue = reflect.ValueOf(stmt.Dest).Elem()
	stmt.BuildClauses = b.root.Callback().Query().Clauses
	if db.AddError(stmt.Parse(stmt.Model)) == nil {
		callbacks.BuildQuerySQL(db) // it alone: no other plugin adds its own
	}
	if db.Error != nil {
		return nil
	}
	p := &plan{sql: stmt.SQL.String(), vars: stmt.Vars, prepare: b.root.Name() != "postgres"}
	for i, v := range p.vars {
		switch v := v.(type) {
		case boundDigest:
			p.filled = append(p.filled, variable{i, int(v[0])})
		case time.Time:
			if !v.Equal(now) {
				return nil
			}
			p.filled = append(p.filled, variable{i, isTime})
		}
	}
	if len(p.filled) != len(list)+1 {
		return nil
	}
	selected, _ := stmt.Clauses["SELECT"].Expression.(clause.Select)
	for _, column := range selected.Columns {
		t := target{field: b.schema.LookUpField(column.Name)}
		if column.Alias != "" {
			p.owner = b.owner
			t = target{field: b.owner.FieldSchema.LookUpField(column.Name), owners: true}
		}
		if t.field == nil {
			return nil
		}
		p.fields = append(p.fields, t)
	}
	if owned != (p.owner != nil) || len(p.fields) < len(b.schema.DBNames) {
		return nil
	}
	p.rows.New = func() any { return p.newRow() }

	own := fresh().Clauses().Statement
	for _, c := range b.schema.QueryClauses {
		own.AddClause(c)
	}
	p.clauses, p.conditions = len(own.Clauses), conditions(own)
	return p
}

func conditions(stmt *gorm.Statement) int {
	where, _ := stmt.Clauses["WHERE"].Expression.(clause.Where)
	return len(where.Exprs)
}

// plans are a binding's, made when they are first asked for.
type plans struct {
	alone, owned func() *plan
	callbacks    []callback
	off          atomic.Bool // another plugin adds to these statements
}

func (p *plans) intact() bool {
	for _, c := range p.callbacks {
		if !c.intact() {
			return false
		}
	}
	return true
}

func (b *binding) initPlans() {
	b.plans.alone = sync.OnceValue(func() *plan { return b.newPlan(false) })
	b.plans.owned = sync.OnceValue(func() *plan {
		if b.owner == nil {
			return nil
		}
		return b.newPlan(true)
	})
}

// planFor is the plan for a look-up within the scopes; nil: GORM builds it.
func (b *binding) planFor(scopes []Scope) *plan {
	switch {
	case b.plans.off.Load():
		return nil
	case len(scopes) == 0:
		return b.plans.alone()
	case len(scopes) == 1 && isWithOwner(scopes[0]):
		return b.plans.owned()
	}
	return nil
}

func isWithOwner(scope Scope) bool {
	return reflect.ValueOf(scope).Pointer() == reflect.ValueOf(WithOwner).Pointer()
}

// direct is one look-up by a plan: its statement, that statement's context, by which
// the plugin's callbacks know it, and the statement's pool, which scans too.
type direct struct {
	context.Context
	plan    *plan
	pool    gorm.ConnPool
	session reflect.Value
	values  []any
	found   bool
	refused bool
	db      gorm.DB
	stmt    gorm.Statement
}

type directKey struct{}

func (d *direct) Value(key any) any {
	if key == (directKey{}) {
		return d
	}
	return d.Context.Value(key)
}

// direct looks a session up by a plan, or says errIndirect. The digests are all the
// hashers'.
func (b *binding) direct(ctx context.Context, from *gorm.DB, p *plan, list digests, now time.Time, session any) error {
	if p == nil || len(list)+1 != len(p.filled) || !plain(from) || !b.plans.intact() {
		return errIndirect
	}
	d := &direct{Context: ctx, plan: p, session: reflect.ValueOf(session).Elem()}
	d.values = make([]any, len(p.vars))
	copy(d.values, p.vars)
	for _, v := range p.filled {
		if v.digest == isTime {
			d.values[v.at] = now
		} else {
			d.values[v.at] = boundDigest(list[v.digest])
		}
	}
	d.db.Config, d.db.Statement = from.Config, &d.stmt
	d.stmt.DB, d.stmt.ConnPool, d.stmt.SkipHooks = &d.db, from.Statement.ConnPool, from.Statement.SkipHooks
	d.stmt.Context, d.stmt.Clauses = d, map[string]clause.Clause{}
	d.stmt.Model, d.stmt.Dest = session, session
	if from != b.root {
		from.Statement.Settings.Range(func(key, value any) bool {
			d.stmt.Settings.Store(key, value)
			return true
		})
	}
	if _, resolved := from.Plugins["gorm:db_resolver"]; resolved {
		if _, replica := d.stmt.Settings.Load(readReplica); !replica {
			d.stmt.Settings.Store(readPrimary, struct{}{})
		}
	}
	unprepared(&d.stmt)
	b.root.Callback().Query().Execute(&d.db)
	switch {
	case d.refused:
		b.plans.off.Store(true)
		return errIndirect
	case d.db.Error != nil:
		return d.db.Error
	case d.db.RowsAffected == 0:
		return ErrNoSession
	}
	return nil
}

// plain reports whether the statement that a call starts from asks for nothing
// itself.
func plain(db *gorm.DB) bool {
	s := db.Statement
	return db.Error == nil && !db.DryRun && len(s.Clauses) == 0 && s.Table == "" && s.TableExpr == nil && !s.Unscoped && !s.Distinct &&
		len(s.Selects) == 0 && len(s.Omits) == 0 && len(s.Joins) == 0 && len(s.Preloads) == 0 && len(s.ColumnMapping) == 0 &&
		s.SQL.Len() == 0 && !s.RaiseErrorOnNotFound && !scoped(s)
}

var scopesOf, scopesKnown = reflect.TypeFor[gorm.Statement]().FieldByName("scopes")

func scoped(s *gorm.Statement) bool {
	return !scopesKnown || reflect.ValueOf(s).Elem().FieldByIndex(scopesOf.Index).Len() > 0
}

func (b *binding) directOf(db *gorm.DB) *direct {
	if !b.mine(db.Statement) {
		return nil
	}
	if d, ok := db.Statement.Context.Value(directKey{}).(*direct); ok && db.Statement == &d.stmt {
		return d
	}
	return nil
}

// beginDirect gives a direct look-up its statement, just before GORM would build one.
func (b *binding) beginDirect(db *gorm.DB) {
	d := b.directOf(db)
	if d == nil || db.Error != nil || d.stmt.SQL.Len() > 0 {
		return
	}
	d.stmt.SQL.WriteString(d.plan.sql)
	d.stmt.Vars = d.values
	d.pool, d.stmt.ConnPool = d.stmt.ConnPool, d
}

// endDirect ends it, before preloads and hooks.
func (b *binding) endDirect(db *gorm.DB) {
	d := b.directOf(db)
	if d == nil || d.pool == nil {
		return
	}
	d.stmt.ConnPool = d.pool
	if d.found {
		d.db.RowsAffected = 1
	}
}

// QueryContext runs the statement for gorm:query, and takes the row itself: what it
// returns has been read.
func (d *direct) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	s, p := &d.stmt, d.plan
	if query != p.sql || len(s.Clauses) != p.clauses || conditions(s) != p.conditions || s.Unscoped ||
		len(s.Selects) > 0 || len(s.Omits) > 0 || len(s.Joins) > 0 || s.TableExpr != nil || s.Table != s.Schema.Table {
		d.refused = true
		return nil, errIndirect
	}
	if ctx == context.Context(d) {
		ctx = d.Context
	}
	rows, err := p.query(ctx, d.pool, d.db.Name() == "sqlite", query, args)
	if err != nil {
		return nil, err
	}
	if rows.Next() {
		err = p.scan(ctx, rows, d.session)
		d.found = err == nil
	}
	if closing := rows.Close(); err == nil {
		err = closing
	}
	if err != nil {
		return nil, err
	}
	return rows, nil
}

// The rest of gorm.ConnPool is the pool's own.

func (d *direct) PrepareContext(ctx context.Context, query string) (*sql.Stmt, error) {
	return d.pool.PrepareContext(ctx, query)
}

func (d *direct) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	return d.pool.ExecContext(ctx, query, args...)
}

func (d *direct) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	return d.pool.QueryRowContext(ctx, query, args...)
}

// query runs the statement, prepared where that helps: pgx prepares what it is given
// by itself, unless the application told it not to.
func (p *plan) query(ctx context.Context, pool gorm.ConnPool, sqlite bool, query string, args []any) (*sql.Rows, error) {
	if cached, ok := pool.(*gorm.PreparedStmtDB); ok {
		pool = cached.ConnPool
	}
	db, ok := pool.(*sql.DB)
	if !ok {
		return pool.QueryContext(ctx, query, args...)
	}
	if sqlite && ctx.Done() != nil && db.Stats().MaxOpenConnections == 0 {
		// To be able to interrupt a query the drivers start a goroutine for each,
		// which costs more than this one. It waits for no connection either.
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		ctx = context.WithoutCancel(ctx)
	}
	if p.prepare {
		if stmt, err := p.on(ctx, db); err == nil {
			return stmt.QueryContext(ctx, args...)
		}
	}
	return db.QueryContext(ctx, query, args...)
}

// on is the statement prepared on db: the application's pool, or one of dbresolver's.
func (p *plan) on(ctx context.Context, db *sql.DB) (*sql.Stmt, error) {
	for {
		list := p.prepared.Load()
		if list != nil {
			if stmt := (*list)[db]; stmt != nil {
				return stmt, nil
			}
		}
		stmt, err := db.PrepareContext(ctx, p.sql)
		if err != nil {
			return nil, err
		}
		next := map[*sql.DB]*sql.Stmt{db: stmt}
		if list != nil {
			for k, v := range *list {
				next[k] = v
			}
		}
		if next[db] == stmt && p.prepared.CompareAndSwap(list, &next) {
			return stmt, nil
		}
		_ = stmt.Close()
	}
}

// target is a column of a plan: of the session, or of its owner.
type target struct {
	field  *schema.Field
	owners bool
}

// row is what a row is scanned by, used again for others.
type row struct {
	slots []slot
	dests []any
}

// slot takes one column: dest is what rows.Scan fills for the value that holds the
// field, and done ends it.
type slot interface {
	dest(ctx context.Context, f *schema.Field, v reflect.Value) any
	done(ctx context.Context, f *schema.Field, v reflect.Value) error
}

func (p *plan) newRow() *row {
	r := &row{slots: make([]slot, len(p.fields)), dests: make([]any, len(p.fields))}
	for i, t := range p.fields {
		r.slots[i] = slotFor(t.field)
	}
	return r
}

// scan does what GORM's scan does for one row.
func (p *plan) scan(ctx context.Context, rows *sql.Rows, session reflect.Value) (err error) {
	r := p.rows.Get().(*row)
	defer p.rows.Put(r)
	var owner reflect.Value
	if p.owner != nil {
		if owner = p.owner.Field.ReflectValueOf(ctx, session); owner.Kind() == reflect.Pointer {
			owner.Set(reflect.New(owner.Type().Elem()))
			owner = owner.Elem()
		}
	}
	holder := func(t target) reflect.Value {
		if t.owners {
			return owner
		}
		return session
	}
	for i, t := range p.fields {
		r.dests[i] = r.slots[i].dest(ctx, t.field, holder(t))
	}
	err = rows.Scan(r.dests...)
	for i, t := range p.fields {
		if failed := r.slots[i].done(ctx, t.field, holder(t)); err == nil {
			err = failed
		}
		r.dests[i] = nil
	}
	return err
}

// slotFor chooses how a field is scanned. All do what GORM does: it scans into a
// pointer to the field's type, so that NULL is the zero value, and sets the field from
// that. The ways that are not GORM's own spare the pointer.
func slotFor(f *schema.Field) slot {
	switch {
	case !f.Readable:
		return &sink{}
	case f.Serializer != nil:
		return &byGORM{}
	case f.FieldType.Kind() == reflect.Pointer && f.FieldType.Elem() == f.IndirectFieldType:
		return byAddress{}
	}
	switch reflect.New(f.FieldType).Interface().(type) {
	case *datatypes.JSONMap:
		return &byScanner{empty: "{}"}
	case sql.Scanner:
		return &byScanner{}
	case *string:
		return &byValue[string]{}
	case *bool:
		return &byValue[bool]{}
	case *[]byte:
		return &byValue[[]byte]{}
	case *time.Time:
		return &byValue[time.Time]{}
	case *float64:
		return &byValue[float64]{}
	case *int:
		return &byNumber[int]{}
	case *int64:
		return &byNumber[int64]{}
	case *uint:
		return &byNumber[uint]{}
	case *uint64:
		return &byNumber[uint64]{}
	case *time.Duration:
		return &byNumber[time.Duration]{}
	}
	return &byGORM{}
}

// sink is for a column that GORM does not read.
type sink struct{ value any }

func (s *sink) dest(context.Context, *schema.Field, reflect.Value) any   { return &s.value }
func (s *sink) done(context.Context, *schema.Field, reflect.Value) error { s.value = nil; return nil }

// byGORM is GORM's own way.
type byGORM struct{ value any }

func (s *byGORM) dest(_ context.Context, f *schema.Field, _ reflect.Value) any {
	s.value = f.NewValuePool.Get()
	return s.value
}

func (s *byGORM) done(ctx context.Context, f *schema.Field, v reflect.Value) error {
	err := f.Set(ctx, v, s.value)
	f.NewValuePool.Put(s.value)
	s.value = nil
	return err
}

// byAddress is for fields that are pointers: NULL is nil.
type byAddress struct{}

func (byAddress) dest(ctx context.Context, f *schema.Field, v reflect.Value) any {
	return f.ReflectValueOf(ctx, v).Addr().Interface()
}
func (byAddress) done(context.Context, *schema.Field, reflect.Value) error { return nil }

// byScanner is for fields that scan themselves, which are not asked for NULL.
type byScanner struct {
	scanner sql.Scanner
	empty   string // the text of an empty map
}

func (s *byScanner) dest(ctx context.Context, f *schema.Field, v reflect.Value) any {
	s.scanner = f.ReflectValueOf(ctx, v).Addr().Interface().(sql.Scanner)
	return s
}
func (s *byScanner) done(context.Context, *schema.Field, reflect.Value) error {
	s.scanner = nil
	return nil
}

// Scan implements [sql.Scanner].
func (s *byScanner) Scan(src any) error {
	if src == nil {
		return nil
	}
	if s.empty != "" {
		if text, ok := src.(string); ok && text == s.empty {
			src = nil // as its Scan takes it
		} else if text, ok := src.([]byte); ok && string(text) == s.empty {
			src = nil
		}
	}
	return s.scanner.Scan(src)
}

// byValue is for fields of a type that database/sql converts to.
type byValue[V any] struct {
	field *V
	null  sql.Null[V]
}

func (s *byValue[V]) dest(ctx context.Context, f *schema.Field, v reflect.Value) any {
	s.field = f.ReflectValueOf(ctx, v).Addr().Interface().(*V)
	return s
}

func (s *byValue[V]) done(context.Context, *schema.Field, reflect.Value) error {
	s.field, s.null = nil, sql.Null[V]{}
	return nil
}

// Scan implements [sql.Scanner].
func (s *byValue[V]) Scan(src any) error {
	if v, ok := src.(V); ok {
		if _, shared := src.([]byte); !shared {
			*s.field = v
			return nil
		}
	}
	err := s.null.Scan(src)
	*s.field = s.null.V
	return err
}

// byNumber is byValue for integers, which drivers give as int64.
type byNumber[V int | int64 | uint | uint64 | time.Duration] struct{ byValue[V] }

func (s *byNumber[V]) dest(ctx context.Context, f *schema.Field, v reflect.Value) any {
	s.byValue.dest(ctx, f, v)
	return s
}

// Scan implements [sql.Scanner].
func (s *byNumber[V]) Scan(src any) error {
	if n, ok := src.(int64); ok {
		if v := V(n); int64(v) == n && (v < 0) == (n < 0) {
			*s.field = v
			return nil
		}
	}
	return s.byValue.Scan(src)
}
