package gormsessions

import (
	"context"
	"database/sql"
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"
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
// once too. Where other plugins have callbacks of queries, the statement is one that
// they can add to: what they add they still add. Then, and with scopes of the
// caller's, GORM builds it.

// errIndirect: this look-up is one for GORM's builder.
var errIndirect = errors.New("gormsessions: the statement was changed by another plugin, and is built anew")

// plan is a look-up's fixed statement.
type plan struct {
	sql    string
	text   strings.Builder // that too, as statements hold it
	vars   []any           // those that are fixed; digests and times are marked
	filled []variable
	owner  *schema.Relationship // joined; nil: none
	fields []target
	rows   sync.Pool // of *row

	static bool // the model has no part in a statement

	table, tableExpr    string
	clauses, conditions int // of the statement, with those that the model itself adds (soft deletion)

	statement prepared
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
	p := &plan{vars: stmt.Vars}
	p.text.WriteString(stmt.SQL.String())
	p.sql = p.text.String()
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
	_, modifies := stmt.Model.(gorm.StatementModifier)
	p.static = !modifies && len(b.schema.QueryClauses) == 0 && !b.schema.AfterFind

	p.table, p.tableExpr = fromOf(stmt)

	own := fresh().Where(nothing).Statement
	for _, c := range append(slices.Clip(b.schema.QueryClauses), clause.Interface(clause.From{}), clause.Select{}) {
		own.AddClause(c)
	}
	where, _ := own.Clauses["WHERE"].Expression.(clause.Where)
	p.clauses, p.conditions = len(own.Clauses)+1, len(where.Exprs)
	return p
}

// fromOf is the table that a statement asks, and its SQL where that is another than
// the name: a schema's.
func fromOf(stmt *gorm.Statement) (table, expr string) {
	if stmt.TableExpr != nil {
		expr = stmt.TableExpr.SQL
	}
	return stmt.Table, expr
}

// plans are a binding's, made when they are first asked for.
type plans struct {
	alone, owned func() *plan
	insert       func() *insertion
	lists        statements
	off          atomic.Bool // another plugin adds to these statements
}

func (b *binding) initPlans() {
	b.plans.alone = sync.OnceValue(func() *plan { return b.newPlan(false) })
	b.plans.insert = sync.OnceValue(b.newInsertion)
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

// direct is one look-up by a plan. Where nobody else has a part in it, its statement
// has its SQL from the beginning. Else others see a statement that has its condition,
// which is the look-up itself, and no SQL yet: that is written when GORM would build
// it, if nobody has added to the statement. The look-up is the statement's pool too, to
// scan what it asks.
type direct struct {
	*binding
	plan                  *plan
	digests               digests
	now                   time.Time
	session               reflect.Value
	pool                  gorm.ConnPool // the statement's own
	refused, asked, found bool
	condition             [1]clause.Expression // with values: room, in this one allocation
	values                [6]any
	db                    gorm.DB
	stmt                  gorm.Statement
}

const directClause = "gormsessions:direct"

var (
	directClauses = []string{directClause} // all that GORM builds

	// What GORM would add.
	allColumns clause.Expression = clause.Select{}
	ownTable   clause.Expression = clause.From{}
)

// direct looks a session up by a plan, or says errIndirect. The digests are all the
// hashers'.
func (b *binding) direct(ctx context.Context, from *gorm.DB, p *plan, list digests, now time.Time, session any) error {
	others := b.queries.judge()
	if p == nil || len(list)+1 != len(p.filled) || !plain(from) || !others.direct {
		return errIndirect
	}
	d := &direct{binding: b, plan: p, digests: list, now: now, session: reflect.ValueOf(session).Elem()}
	d.db.Config, d.db.Statement = from.Config, &d.stmt
	d.stmt.DB, d.stmt.ConnPool, d.stmt.SkipHooks = &d.db, from.Statement.ConnPool, from.Statement.SkipHooks
	d.stmt.Context, d.stmt.Model, d.stmt.Dest = ctx, session, session
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
	if others.bare && p.static {
		d.stmt.SQL = p.text // which nobody writes to: GORM builds nothing where there is SQL
		d.begin()
	} else {
		d.stmt.BuildClauses = directClauses
		d.condition[0] = d
		d.stmt.Clauses = map[string]clause.Clause{
			"SELECT":     {Name: "SELECT", Expression: allColumns},
			"FROM":       {Name: "FROM", Expression: ownTable},
			"WHERE":      {Name: "WHERE", Expression: clause.Where{Exprs: d.condition[:]}},
			directClause: {Expression: fixed{d}},
		}
	}
	b.root.Callback().Query().Execute(&d.db)
	switch {
	case d.refused:
		b.plans.off.Store(true)
		return errIndirect
	case !d.asked: // another plugin has answered, or refused: it may judge by the whole statement
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
	return db.Error == nil && !db.DryRun && len(s.Clauses) == 0 && s.Table == "" && s.TableExpr == nil &&
		len(s.Preloads) == 0 && s.SQL.Len() == 0 && !scoped(s) && usual(s)
}

func usual(s *gorm.Statement) bool {
	return !s.Unscoped && !s.Distinct && !s.RaiseErrorOnNotFound &&
		len(s.Selects) == 0 && len(s.Omits) == 0 && len(s.Joins) == 0 && len(s.ColumnMapping) == 0
}

var scopesOf, scopesKnown = fieldOf[gorm.Statement]("scopes", func(t reflect.Type) bool { return t.Kind() == reflect.Slice })

func scoped(s *gorm.Statement) bool {
	return !scopesKnown || reflect.ValueOf(s).Elem().FieldByIndex(scopesOf.Index).Len() > 0
}

// untouched reports whether the statement is as it was begun, but for what GORM adds
// to each.
func (d *direct) untouched() bool {
	s, p := &d.stmt, d.plan
	if table, expr := fromOf(s); table != p.table || expr != p.tableExpr || !usual(s) || s.Dest != d.session.Addr().Interface() || len(s.Clauses) != p.clauses {
		return false
	}
	for _, c := range s.Clauses {
		if c.BeforeExpression != nil || c.AfterNameExpression != nil || c.AfterExpression != nil || c.Builder != nil {
			return false
		}
	}
	where, _ := s.Clauses["WHERE"].Expression.(clause.Where)
	from, _ := s.Clauses["FROM"].Expression.(clause.From)
	selected, _ := s.Clauses["SELECT"].Expression.(clause.Select)
	return len(where.Exprs) == p.conditions && where.Exprs[0] == clause.Expression(d) &&
		len(from.Tables) == 0 && len(from.Joins) == 0 && len(selected.Columns) == 0 && selected.Expression == nil && !selected.Distinct
}

// Build makes a look-up a condition, for statements that others make of this one.
func (d *direct) Build(builder clause.Builder) {
	group{d.digestIn(d.digests), d.binding.active(d.now)}.Build(builder)
}

// fixed is the whole statement of a look-up, as GORM builds it.
type fixed struct{ *direct }

// Build implements [clause.Expression].
func (f fixed) Build(builder clause.Builder) {
	d := f.direct
	if !d.untouched() {
		d.refused = true
		_ = builder.AddError(errIndirect)
		return
	}
	_, _ = builder.WriteString(d.plan.sql)
	d.begin()
}

// begin gives the statement its variables, and makes the look-up its pool.
func (d *direct) begin() {
	d.stmt.Vars = append(d.values[:0], d.plan.vars...)
	for _, v := range d.plan.filled {
		if v.digest == isTime {
			d.stmt.Vars[v.at] = d.now
		} else {
			d.stmt.Vars[v.at] = boundDigest(d.digests[v.digest])
		}
	}
	d.pool, d.stmt.ConnPool = d.stmt.ConnPool, d
}

// endDirect ends a look-up's query, or a list's, before preloads and hooks.
func (b *binding) endDirect(db *gorm.DB) {
	switch pool := db.Statement.ConnPool.(type) {
	case *direct:
		if db.Statement != &pool.stmt {
			return
		}
		pool.stmt.ConnPool = pool.pool
		if pool.found {
			pool.db.RowsAffected = 1
		}
	case *listing:
		pool.end(db)
	}
}

// QueryContext runs the statement for gorm:query, and takes the row itself: what it
// returns has been read.
func (d *direct) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	p := d.plan
	if query != p.sql { // of a statement that another plugin made of this one
		return d.pool.QueryContext(ctx, query, args...)
	}
	d.asked = true
	rows, err := p.query(ctx, d.pool, d.db.Name(), query, args)
	if err != nil {
		return nil, err
	}
	if rows.Next() { // if that fails, GORM asks the rows why
		err = p.scan(ctx, rows, d.session)
		d.found = err == nil
	}
	if closing := rows.Close(); err == nil {
		err = closing
	}
	return rows, err
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

// query runs the statement.
func (p *plan) query(ctx context.Context, pool gorm.ConnPool, dialect, query string, args []any) (*sql.Rows, error) {
	db := poolOf(pool)
	if db == nil {
		return pool.QueryContext(ctx, query, args...)
	}
	if dialect == "sqlite" && ctx.Done() != nil && hasRoom(db.Stats()) {
		// To be able to interrupt a query the drivers start a goroutine for each,
		// which costs more than this one. It waits for no connection either.
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		ctx = context.WithoutCancel(ctx)
	}
	if stmt := p.statement.on(ctx, db, dialect, query); stmt != nil {
		return stmt.QueryContext(ctx, args...)
	}
	return db.QueryContext(ctx, query, args...)
}

// hasRoom reports whether a statement will not wait for a connection.
func hasRoom(pool sql.DBStats) bool { return pool.MaxOpenConnections == 0 || pool.Idle > 0 }

// poolOf is the pool of database/sql that a statement outside a transaction uses; nil
// where it uses another thing.
func poolOf(pool gorm.ConnPool) *sql.DB {
	if cached, ok := pool.(*gorm.PreparedStmtDB); ok {
		pool = cached.ConnPool
	}
	db, _ := pool.(*sql.DB)
	return db
}

// prepared is a statement of the plugin's own, prepared on each pool that it is run on:
// the application's, or one of dbresolver's. There may be ever new ones, so their
// number is limited.
type prepared struct {
	list atomic.Pointer[map[*sql.DB]*sql.Stmt]
}

const maxPools = 16

// on is the statement on db; nil where it cannot be prepared, or need not be: pgx
// prepares what it is given, unless the application told it not to.
func (p *prepared) on(ctx context.Context, db *sql.DB, dialect, query string) *sql.Stmt {
	if p == nil || dialect == "postgres" {
		return nil
	}
	for {
		list := p.list.Load()
		if list != nil {
			if stmt := (*list)[db]; stmt != nil {
				return stmt
			}
			if len(*list) >= maxPools {
				return nil
			}
		}
		stmt, err := db.PrepareContext(ctx, query)
		if err != nil {
			return nil
		}
		next := map[*sql.DB]*sql.Stmt{db: stmt}
		if list != nil {
			maps.Copy(next, *list)
		}
		if p.list.CompareAndSwap(list, &next) {
			return stmt
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
	set := false
	defer func() {
		if !set { // a serializer panicked; a panic within Scan locks the rows
			_ = rows.Close()
		}
	}()
	for i, t := range p.fields {
		if failed := r.slots[i].done(ctx, t.field, holder(t)); err == nil {
			err = failed
		}
		r.dests[i] = nil
	}
	set = true
	return err
}

// slotFor chooses how a field is scanned. All do what GORM does: it scans into a
// pointer to the field's type, so that NULL is the zero value, and sets the field from
// that. The ways that are not GORM's own spare the pointer.
func slotFor(f *schema.Field) slot {
	switch {
	case !f.Readable:
		return &sink{}
	case f.Serializer != nil, behindPointer(f): // NULL makes no struct there
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

// behindPointer reports whether a field is in a struct that is embedded by a pointer:
// GORM makes such an index negative.
func behindPointer(f *schema.Field) bool {
	return slices.ContainsFunc(f.StructField.Index, func(i int) bool { return i < 0 })
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

// insertion is the part of a session's INSERT that never changes.
type insertion struct {
	table, tableExpr string
	head, tail       string
	fields           []*schema.Field
	statement        prepared
	text             atomic.Pointer[string] // what was prepared
}

// newInsertion has GORM build the INSERT of a row of zeros; nil where one is not like
// the other, for the database fills in columns.
func (b *binding) newInsertion() *insertion {
	if len(b.schema.FieldsWithDefaultDBValue) > 0 || len(b.schema.CreateClauses) > 0 {
		return nil
	}
	in := &insertion{}
	db := b.root.Session(&gorm.Session{NewDB: true}).Model(b.value()).Omit(b.ownerName()...)
	if db.Statement.Parse(db.Statement.Model) != nil {
		return nil
	}
	values := clause.Values{Values: [][]any{nil}}
	chosen, _ := db.Statement.SelectAndOmitColumns(true, false)
	for _, name := range b.schema.DBNames {
		if keep, said := chosen[name]; said && !keep { // GORM only reads it
			continue
		}
		in.fields = append(in.fields, b.schema.FieldsByDBName[name])
		values.Columns = append(values.Columns, clause.Column{Name: name})
		values.Values[0] = append(values.Values[0], clause.Expr{SQL: "0"})
	}
	in.table, in.tableExpr = fromOf(db.Statement)
	db.Statement.AddClause(clause.Insert{})
	db.Statement.AddClause(values)
	db.Statement.Build(b.root.Callback().Create().Clauses...)
	zeros := "(0" + strings.Repeat(",0", len(in.fields)-1) + ")"
	sql := db.Statement.SQL.String()
	at := strings.LastIndex(sql, zeros)
	if at < 0 {
		return nil
	}
	in.head, in.tail = sql[:at], sql[at+len(zeros):]
	return in
}

// beginInsert writes the INSERT of one session, just before GORM would build the same.
// A callback of another plugin's that comes between would see a finished statement:
// where there is one, GORM builds it.
func (b *binding) beginInsert(db *gorm.DB) {
	stmt := db.Statement
	if !b.mine(stmt) || db.Error != nil || db.DryRun || stmt.SQL.Len() > 0 || len(stmt.Clauses) > 0 || stmt.Unscoped || len(stmt.Selects) > 0 ||
		len(stmt.ColumnMapping) > 0 || !slices.Equal(stmt.Omits, b.ownerName()) ||
		stmt.ReflectValue.Kind() != reflect.Struct || stmt.ReflectValue.Type() != b.schema.ModelType || !b.creates.judge().alone {
		return
	}
	in := b.plans.insert()
	if _, filled := db.InstanceGet(snapshots); in == nil || !filled {
		return
	}
	if table, expr := fromOf(stmt); table != in.table || expr != in.tableExpr {
		return
	}
	now := db.NowFunc()
	stmt.SQL.Grow(len(in.head) + 4*len(in.fields) + len(in.tail))
	stmt.SQL.WriteString(in.head)
	stmt.Vars = make([]any, 0, len(in.fields))
	for i, f := range in.fields {
		value, zero := f.ValueOf(stmt.Context, stmt.ReflectValue)
		if zero {
			switch {
			case f.DefaultValueInterface != nil:
				_ = db.AddError(f.Set(stmt.Context, stmt.ReflectValue, f.DefaultValueInterface))
				value = f.DefaultValueInterface
			case f.AutoCreateTime > 0 || f.AutoUpdateTime > 0:
				_ = db.AddError(f.Set(stmt.Context, stmt.ReflectValue, now))
				value, _ = f.ValueOf(stmt.Context, stmt.ReflectValue)
			}
		}
		stmt.SQL.WriteByte("(,"[min(i, 1)])
		stmt.AddVar(stmt, value)
	}
	stmt.SQL.WriteByte(')')
	stmt.SQL.WriteString(in.tail)
	if pool := poolOf(stmt.ConnPool); pool != nil {
		stmt.ConnPool = &inserter{ConnPool: stmt.ConnPool, in: in, pool: pool, dialect: db.Name()}
	}
}

// endInsert gives the statement its pool back.
func (b *binding) endInsert(db *gorm.DB) {
	if i, ok := db.Statement.ConnPool.(*inserter); ok {
		db.Statement.ConnPool = i.ConnPool
	}
}

// inserter is the pool of an INSERT outside a transaction: it runs it prepared.
type inserter struct {
	gorm.ConnPool
	in      *insertion
	pool    *sql.DB
	dialect string
}

// ExecContext implements [gorm.ConnPool].
func (i *inserter) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	i.in.text.CompareAndSwap(nil, &query)
	if *i.in.text.Load() == query { // a value may have changed it
		if stmt := i.in.statement.on(ctx, i.pool, i.dialect, query); stmt != nil {
			return stmt.ExecContext(ctx, args...)
		}
	}
	return i.ConnPool.ExecContext(ctx, query, args...)
}

// alone reports whether storing a session is one statement, which needs no
// transaction: no limit, hook, association, other plugin or value that the database
// returns has a part in it.
func (c call) alone(session any) bool {
	s := c.schema
	if c.maxPerOwner > 0 || s.BeforeSave || s.BeforeCreate || s.AfterSave || s.AfterCreate || c.plans.insert() == nil ||
		len(c.db.Statement.Clauses) > 0 || !c.creates.judge().alone {
		return false
	}
	v := reflect.ValueOf(session).Elem()
	own := &s.Relationships
	for _, list := range [][]*schema.Relationship{own.BelongsTo, own.HasOne, own.HasMany, own.Many2Many} {
		for _, rel := range list {
			if _, none := rel.Field.ValueOf(c.db.Statement.Context, v); rel != c.owner && !none {
				return false
			}
		}
	}
	return true
}
