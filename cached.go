package gormsessions

import (
	"context"
	"crypto/subtle"
	"database/sql"
	"database/sql/driver"
	"reflect"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"gorm.io/gorm"
	"gorm.io/gorm/clause"
	"gorm.io/gorm/schema"
)

// caching is what a binding has of Config.Cache.
type caching struct {
	Cache
	tables CacheTables
	copies *copier
	uses   chan struct{} // holds one for each use that is being written behind a request
}

// maxUses is how many uses of cached sessions are written at once; of more, later
// requests see to it.
const maxUses = 4

func (b *binding) initCaching(cache Cache) {
	if cache == nil {
		return
	}
	b.caching = &caching{Cache: cache, copies: newCopier(b.columns), uses: make(chan struct{}, maxUses)}
	b.caching.tables = CacheTables{Sessions: b.schema.Table, SessionKey: b.id.DBName}
	if b.owner != nil {
		b.caching.tables.Owners = b.owner.FieldSchema.Table
		if key := b.ownerKey(); plainKey(key.IndirectFieldType) && key.Serializer == nil {
			b.caching.tables.OwnerKey = key.DBName
		}
	}
}

// ownerKey is the owner's primary key.
func (c *columns) ownerKey() *schema.Field { return c.owner.References[0].PrimaryKey }

// entry is a session in the cache: nobody else has it.
type entry[T any] struct {
	block[T]
	owned bool // it was looked up with its owner
	flat  bool // copies of its Data share nothing
	using atomic.Bool
}

func keyOf(d Digest) (key CacheKey) {
	copy(key[:], d)
	return key
}

// cached is the active session of a token, where the cache has it: a copy for the
// caller. Nil: ask the database.
func (p *Plugin[T]) cached(ctx context.Context, token string, scopes []Scope, use bool) *T {
	b := p.core.bound.Load()
	// Whether the token can be valid was judged before its session was kept.
	if b == nil || b.caching == nil || b.plans.off.Load() || p.with || len(token) == 0 || len(token) > maxToken || ctx.Err() != nil {
		return nil
	}
	owned := len(scopes) == 1
	if owned && !isWithOwner(scopes[0]) || len(scopes) > 1 {
		return nil
	}
	var buf [maxDigest]byte
	digest := Digest(digestTo(buf[:0], b.hashers[0], token))
	e, ok := b.caching.Get(keyOf(digest)).(*entry[T])
	if !ok || owned && !e.owned {
		return nil
	}
	base, now := sessionIn(&e.session), nowOf(b.root)
	if subtle.ConstantTimeCompare(base.TokenDigest, digest) != 1 || !base.activeAt(now) {
		return nil // another node may have extended it
	}
	if use && b.due(base, now) && e.using.CompareAndSwap(false, true) {
		p.useBehind(ctx, e)
	}
	return copyOf(b.caching.copies, &e.session, owned, e.flat)
}

// digestTo appends the digest to dst, for the package's own hashers without an
// allocation.
func digestTo(dst []byte, h Hasher, token string) []byte {
	if own, ok := h.(*hasher); ok {
		return own.append(dst, token)
	}
	return append(dst, h.Digest(token)...)
}

// useBehind writes that a cached session is used, without the request that used it.
func (p *Plugin[T]) useBehind(ctx context.Context, e *entry[T]) {
	caching := p.core.bound.Load().caching
	select {
	case caching.uses <- struct{}{}:
	default:
		e.using.Store(false)
		return
	}
	go func() {
		defer func() { <-caching.uses }()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		c, err := p.begin(ctx)
		if err != nil {
			return
		}
		defer func() {
			if r := recover(); r != nil {
				e.using.Store(false)
				c.db.Logger.Error(ctx, "gormsessions: noting the use of a cached session panicked: %v\n%s", r, debug.Stack())
			}
		}()
		session := copyOf(caching.copies, &e.session, false, e.flat)
		base, now := sessionIn(session), nowOf(c.db)
		won, err := c.use(base, now, base.TokenDigest, true)
		switch {
		case err != nil:
			c.db.Logger.Warn(ctx, "gormsessions: session %s is active, but noting its use failed: %v", base.ID, err)
			e.using.Store(false)
		case won: // which took it out of the cache
			c.send(c.db, c.eventOf(EventExtended, session, now, ""))
		default: // the row is no longer as it was
			caching.Changed(SessionTag(base.ID))
		}
	}()
}

// keep puts a session that was looked up into the cache, a copy of it. It was read
// when the cache's clock said so.
func (p *Plugin[T]) keep(b *binding, session *T, scopes []Scope, digests digests, read uint64) {
	base := sessionIn(session)
	// A session that was found by another hasher's digest is about to get this one.
	// What another plugin adds is as a scope of the caller's. And without all its
	// callbacks the cache misses writes.
	if b.plans.off.Load() || b.intact() != nil || len(scopes) > 1 || len(scopes) == 1 && !isWithOwner(scopes[0]) || subtle.ConstantTimeCompare(base.TokenDigest, digests[0]) != 1 {
		return
	}
	tags := []CacheTag{SessionTag(base.ID)}
	if b.caching.tables.OwnerKey != "" {
		key, _ := b.ownerID.ValueOf(b.root.Statement.Context, reflect.ValueOf(session).Elem())
		tag, ok := b.ownerTag(key)
		if !ok {
			return // its owner's changes could not be told from others'
		}
		tags = append(tags, tag)
		if v := reflect.ValueOf(key); v.Kind() == reflect.String {
			tags = append(tags, CacheTag("o"+v.String())) // as PostgreSQL's triggers write it
		}
	}
	e := &entry[T]{owned: len(scopes) == 1, flat: isFlat(base.Data)}
	copyInto(b.caching.copies, &e.block, session, e.owned, e.flat, room{new(any), 0, 1})
	b.caching.Put(keyOf(digests[0]), e, read, tags...)
}

// plainKey reports whether keys of the type are to the database what they are to Go.
func plainKey(t reflect.Type) bool {
	if t == reflect.TypeFor[uuid.UUID]() {
		return true
	}
	v := reflect.New(t).Interface()
	_, valuer := v.(driver.Valuer)
	_, expression := v.(gorm.Valuer)
	return !valuer && !expression && (t.Kind() >= reflect.Int && t.Kind() <= reflect.Uint64 || t.Kind() == reflect.String)
}

// ownerTag names the owner with that key. It reports false where another spelling of
// the key could be another tag.
func (b *binding) ownerTag(key any) (CacheTag, bool) {
	if b.caching.tables.OwnerKey == "" {
		return "", false
	}
	kind := b.ownerKey().IndirectFieldType
	v := reflect.ValueOf(key)
	for v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	switch {
	case !v.IsValid() || !plainKey(v.Type()):
	case kind == reflect.TypeFor[uuid.UUID]():
		if id, ok := asUUID(v.Interface()); ok {
			return CacheTag("o" + id.String()), true
		}
	case kind.Kind() != reflect.String && v.CanInt():
		return CacheTag("o" + strconv.FormatInt(v.Int(), 10)), true
	case kind.Kind() != reflect.String && v.CanUint():
		return CacheTag("o" + strconv.FormatUint(v.Uint(), 10)), true
	case kind.Kind() == reflect.String && v.Kind() == reflect.String:
		text := v.String()
		for i := range len(text) {
			if text[i] < ' ' || text[i] > '~' {
				return "", false
			}
		}
		// Collations ignore case, spaces at the end, and control characters.
		text = strings.ToLower(strings.TrimRight(text, " "))
		if id, err := uuid.Parse(text); err == nil {
			text = id.String()
		}
		return CacheTag("n" + text), true
	}
	return "", false
}

func asUUID(v any) (uuid.UUID, bool) {
	switch v := v.(type) {
	case uuid.UUID:
		return v, true
	case string:
		id, err := uuid.Parse(v)
		return id, err == nil
	}
	return uuid.Nil, false
}

// What a write changed is told to the cache once it is committed. In a transaction
// that the plugin did not begin nothing tells when that is, and whether: what hangs
// on the rows is then not served until the transaction's value is garbage, which it
// is not before it has ended.

// cachingCallbacks are those that notice writes to the sessions and their owners.
func (b *binding) cachingCallbacks() []callback {
	if b.caching == nil {
		return nil
	}
	prefix, all := pluginName(b.schema.ModelType)+":cache_", b.root.Callback()
	create, update, remove, raw, query, row := all.Create(), all.Update(), all.Delete(), all.Raw(), all.Query(), all.Row()
	return []callback{
		{prefix + "created", create, create.Get, create.After("gorm:create").Before("gorm:save_after_associations"), alone(b.noticeCreate)},
		{prefix + "create", create, create.Get, create.After("gorm:commit_or_rollback_transaction"), within(b.noticeCreate)},
		{prefix + "updated", update, update.Get, update.After("gorm:update").Before("gorm:save_after_associations"), alone(b.noticeWrite)},
		{prefix + "update", update, update.Get, update.After("gorm:commit_or_rollback_transaction"), within(b.noticeWrite)},
		{prefix + "deleted", remove, remove.Get, remove.After("gorm:delete").Before("gorm:after_delete"), alone(b.noticeWrite)},
		{prefix + "delete", remove, remove.Get, remove.After("gorm:commit_or_rollback_transaction"), within(b.noticeWrite)},
		{prefix + "raw", raw, raw.Get, raw.After("gorm:raw"), b.noticeRaw},
		{prefix + "query", query, query.Get, query.After("gorm:query"), b.noticeRawQuery},
		{prefix + "row", row, row.Get, row.After("gorm:row"), b.noticeRawQuery},
	}
}

// alone notices a statement at once, for hooks that may panic come next; and within
// one in GORM's transaction, once that has ended.
func alone(notice func(*gorm.DB)) func(*gorm.DB) {
	return func(db *gorm.DB) {
		if !inGORMs(db) {
			notice(db)
		}
	}
}

func within(notice func(*gorm.DB)) func(*gorm.DB) {
	return func(db *gorm.DB) {
		if inGORMs(db) {
			notice(db)
		}
	}
}

// inGORMs reports whether GORM began a transaction for the statement.
func inGORMs(db *gorm.DB) bool {
	_, began := db.InstanceGet("gorm:started_transaction")
	return began
}

// noticeCreate notices an INSERT that may write rows that are there.
func (b *binding) noticeCreate(db *gorm.DB) {
	if overwrites(db.Statement) {
		b.noticeWrite(db)
	}
}

// noticeWrite tells the cache what a statement may have changed, whether it failed
// or not: a commit may have, that was made.
func (b *binding) noticeWrite(db *gorm.DB) {
	stmt := db.Statement
	if db.DryRun || stmt.Schema == nil && stmt.Table == "" && stmt.TableExpr == nil {
		return
	}
	if _, ended := db.Get(retiredGone); ended {
		return // Prune deletes what no cache serves any more
	}
	var tags []CacheTag
	if named(stmt, b.caching.tables.Sessions) {
		tags = tagsOf(stmt, b.id, func(v any) (CacheTag, bool) {
			id, ok := asUUID(v)
			return SessionTag(id), ok
		})
	}
	if named(stmt, b.caching.tables.Owners) {
		tags = append(tags, tagsOf(stmt, b.ownerKey(), b.ownerTag)...)
	}
	b.changed(db, tags...)
}

func overwrites(stmt *gorm.Statement) bool {
	c, built := stmt.Clauses["INSERT"] // the plugin's own is not
	insert, known := c.Expression.(clause.Insert)
	conflict, upserts := stmt.Clauses["ON CONFLICT"]
	do, _ := conflict.Expression.(clause.OnConflict)
	return built && !known || insert.Modifier != "" || upserts && !do.DoNothing
}

// named reports whether a statement is on a table, by whatever name for it.
func named(stmt *gorm.Statement, table string) bool {
	if table == "" {
		return false
	}
	table = bareName(table)
	return strings.EqualFold(bareName(stmt.Table), table) || irregular(stmt) && containsFold(stmt.SQL.String(), table)
}

// irregular reports whether a statement names its table, or more of them, in another
// way than GORM does by itself.
func irregular(stmt *gorm.Statement) bool {
	update, _ := stmt.Clauses["UPDATE"].Expression.(clause.Update)
	insert, _ := stmt.Clauses["INSERT"].Expression.(clause.Insert)
	from, _ := stmt.Clauses["FROM"].Expression.(clause.From)
	return stmt.TableExpr != nil || update.Table.Name != "" || insert.Table.Name != "" || len(from.Tables) > 0 || len(from.Joins) > 0 || len(stmt.Joins) > 0
}

func bareName(table string) string {
	return strings.Trim(table[strings.LastIndexByte(table, '.')+1:], "`\"[]")
}

func containsFold(text, part string) bool {
	return strings.Contains(strings.ToLower(text), strings.ToLower(part))
}

// tagsOf names the rows that a statement is limited to by their key, or else all.
func tagsOf(stmt *gorm.Statement, key *schema.Field, tag func(any) (CacheTag, bool)) []CacheTag {
	every := []CacheTag{EveryTag}
	if irregular(stmt) {
		return every
	}
	var values []any
	if _, insert := stmt.Clauses["INSERT"]; insert {
		if stmt.Name() == "mysql" && stmt.RowsAffected == 0 && stmt.Error == nil {
			return nil // it counts what has changed
		}
		values = upserted(stmt, key)
	} else {
		where, _ := stmt.Clauses["WHERE"].Expression.(clause.Where)
		values = keysIn(stmt, where.Exprs, key)
	}
	if len(values) == 0 {
		return every
	}
	tags := make([]CacheTag, len(values))
	for i, v := range values {
		var ok bool
		if tags[i], ok = tag(v); !ok {
			return every
		}
	}
	return tags
}

var (
	// byKey is a condition that is a column's name and a parameter.
	byKey = regexp.MustCompile("^\\s*([\\w.`\"\\[\\]]+)\\s*=\\s*\\?\\s*$")
	// either is in text that could say OR.
	either = regexp.MustCompile(`(?i)\bx?or\b|\|\|`)
)

// widens reports whether a condition could be joined to those beside it other than by
// AND, for GORM puts no parentheses around it, or nothing is known of it.
func widens(expr clause.Expression) bool {
	switch e := expr.(type) {
	case clause.Expr:
		return either.MatchString(e.SQL)
	case clause.NamedExpr:
		return either.MatchString(e.SQL)
	case clause.AndConditions:
		return len(e.Exprs) == 1 && widens(e.Exprs[0])
	case clause.NotConditions:
		return slices.ContainsFunc(e.Exprs, widens)
	}
	return loose(expr)
}

// keysIn finds the keys that the conditions limit a statement to.
func keysIn(stmt *gorm.Statement, exprs []clause.Expression, key *schema.Field) []any {
	if slices.ContainsFunc(exprs, widens) {
		return nil
	}
	for _, expr := range exprs {
		var found []any
		switch e := expr.(type) {
		case clause.Eq:
			if isKey(stmt, e.Column, key) {
				found = []any{e.Value}
			}
		case clause.IN:
			if isKey(stmt, e.Column, key) {
				found = e.Values
			}
		case clause.Expr:
			if column := byKey.FindStringSubmatch(e.SQL); column != nil && len(e.Vars) == 1 && isKey(stmt, column[1], key) {
				found = e.Vars
			}
		case clause.AndConditions:
			found = keysIn(stmt, e.Exprs, key)
		case group:
			found = keysIn(stmt, e, key)
		case enclosed:
			found = keysIn(stmt, e.group, key)
		}
		if len(found) > 0 {
			return found
		}
	}
	return nil
}

// isKey reports whether a column is the key, of the statement's table.
func isKey(stmt *gorm.Statement, column any, key *schema.Field) bool {
	var table, name string
	switch c := column.(type) {
	case string:
		dot := strings.LastIndexByte(c, '.')
		table, name = c[:max(dot, 0)], bareName(c)
	case clause.Column:
		table, name = c.Table, c.Name
		if name == clause.PrimaryKey && stmt.Schema != nil && stmt.Schema.PrioritizedPrimaryField != nil {
			name = stmt.Schema.PrioritizedPrimaryField.DBName
		}
	}
	return name == key.DBName && (table == "" || table == clause.CurrentTable || bareName(table) == bareName(stmt.Table))
}

// upserted are the keys of the rows that an upsert may write, where only they can
// meet rows that are there.
func upserted(stmt *gorm.Statement, key *schema.Field) []any {
	insert, _ := stmt.Clauses["INSERT"].Expression.(clause.Insert)
	conflict, _ := stmt.Clauses["ON CONFLICT"].Expression.(clause.OnConflict)
	if stmt.Name() == "mysql" || insert.Modifier != "" || len(conflict.Columns) != 1 || !isKey(stmt, conflict.Columns[0], key) {
		return nil // MySQL takes any unique index
	}
	return insertedKeys(stmt, key)
}

// insertedKeys are the keys of the values that a statement inserts.
func insertedKeys(stmt *gorm.Statement, key *schema.Field) []any {
	if stmt.Schema == nil || stmt.Schema != key.Schema {
		return nil
	}
	var keys []any
	add := func(v reflect.Value) bool {
		for v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface {
			v = v.Elem()
		}
		if !v.IsValid() || v.Type() != stmt.Schema.ModelType {
			return false
		}
		value, zero := key.ValueOf(stmt.Context, v)
		keys = append(keys, value)
		return !zero
	}
	switch v := stmt.ReflectValue; v.Kind() {
	case reflect.Slice, reflect.Array:
		for i := range v.Len() {
			if !add(v.Index(i)) {
				return nil
			}
		}
	default:
		if !add(v) {
			return nil
		}
	}
	return keys
}

// ownRaw is set on the plugin's own SQL, which changes no session that it does not
// tell of.
const ownRaw = "gormsessions:own_raw"

// noticeRaw takes SQL that names one of the tables for a change of all its rows.
func (b *binding) noticeRaw(db *gorm.DB) {
	if _, own := db.Get(ownRaw); own || db.DryRun {
		return
	}
	sql := db.Statement.SQL.String()
	if tables := b.caching.tables; containsFold(sql, bareName(tables.Sessions)) || tables.Owners != "" && containsFold(sql, bareName(tables.Owners)) {
		b.changed(db, EveryTag)
	}
}

var (
	// On one line: a comment may end in "for".
	locking = regexp.MustCompile(`(?i)\bfor[ \t]+(no[ \t]+key[ \t]+)?update\b`)
	writing = regexp.MustCompile(`(?i)\b(insert|update|upsert|delete|replace|merge|truncate|alter|rename|drop|copy|load|call|do|execute)\b`)
)

// noticeRawQuery notices SQL of the application's own that writes and returns rows.
func (b *binding) noticeRawQuery(db *gorm.DB) {
	sql := db.Statement.SQL.String()
	// Raw SQL may come with clauses too, of First or of the model, which it does not use.
	if _, built := db.Statement.Clauses["SELECT"]; built && strings.HasPrefix(sql, "SELECT ") {
		return
	}
	if writing.MatchString(locking.ReplaceAllString(sql, "")) {
		b.noticeRaw(db)
	}
}

// change is what an outbox holds for a cache.
type change struct {
	of   *binding
	tags []CacheTag
}

// changed tells the cache of what a statement has changed: now, if it is committed.
func (b *binding) changed(db *gorm.DB, tags ...CacheTag) {
	if b.caching == nil || len(tags) == 0 {
		return
	}
	if box, ok := db.Get(outboxKey); ok {
		box := box.(*outbox)
		box.changes = append(box.changes, change{b, tags})
		return
	}
	pool := db.Statement.ConnPool
	if tx, ok := db.Get(preparedTx); ok && pool == gorm.ConnPool(tx.(*gorm.PreparedStmtTX).Tx) {
		pool = tx.(*gorm.PreparedStmtTX)
	}
	switch within := pool.(type) {
	case *gorm.PreparedStmtTX: // GORM commits by it; what it prepares keeps the other for a day
		runtime.AddCleanup(within, call0, b.caching.Pending(tags...))
		return
	case *sql.Tx:
		runtime.AddCleanup(within, call0, b.caching.Pending(tags...))
		return
	case *sql.Conn: // on which the application may begin one by hand
		runtime.AddCleanup(within, call0, b.caching.Pending(tags...))
		return
	case gorm.TxCommitter:
		ended := b.caching.Pending(tags...)
		if v := reflect.ValueOf(within); v.Kind() == reflect.Pointer {
			runtime.AddCleanup((*byte)(v.UnsafePointer()), call0, ended)
		}
		return
	}
	// Rows that the statement returns: it is committed once they are closed.
	rows, _ := db.Statement.Dest.(*sql.Rows)
	if row, ok := db.Statement.Dest.(*sql.Row); ok {
		if !rowsKnown {
			b.caching.Pending(tags...) // for good: nothing tells when they are closed
			return
		}
		rows = rowsOf(row)
	}
	if rows != nil {
		runtime.AddCleanup(rows, call0, b.caching.Pending(tags...))
		return
	}
	b.caching.Changed(tags...)
}

var rowsField, rowsKnown = fieldOf[sql.Row]("rows", func(t reflect.Type) bool { return t == reflect.TypeFor[*sql.Rows]() })

// fieldOf is an unexported field of another package's struct, if it is of the kind that
// is relied on.
func fieldOf[T any](name string, is func(reflect.Type) bool) (reflect.StructField, bool) {
	f, there := reflect.TypeFor[T]().FieldByName(name)
	return f, there && is(f.Type)
}

// rowsOf are a row's own rows, which live until they are closed; the row itself may
// be garbage before. Nil: the query has failed.
func rowsOf(row *sql.Row) *sql.Rows {
	return (*sql.Rows)(reflect.ValueOf(row).Elem().FieldByIndex(rowsField.Index).UnsafePointer())
}

func call0(ended func()) { ended() }

// settle tells of an outbox's changes once its transaction has ended, well or not:
// of a commit that failed nobody knows.
func (o *outbox) settle(db *gorm.DB) {
	for _, c := range o.changes {
		c.of.changed(db, c.tags...)
	}
	o.changes = nil
}
