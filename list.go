package gormsessions

import (
	"context"
	"database/sql"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"

	"gorm.io/gorm"
	"gorm.io/gorm/clause"
)

// List returns the sessions that the scopes limit to, in whatever state; with
// no scope, all. They come newest first, unless a scope orders them.
func (p *Plugin[T]) List(ctx context.Context, scopes ...Scope) ([]T, error) {
	c, err := p.begin(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]T, 0, 8)
	l := &listing{binding: c.binding, dest: &list, next: func() reflect.Value {
		list = append(list, *new(T))
		return reflect.ValueOf(&list[len(list)-1]).Elem()
	}}
	if err := c.db.Set(listingKey, l).Scopes(scopes...).Scopes(c.newestFirst).Find(&list).Error; err != nil {
		return nil, wrap("list", err)
	}
	for i := range list {
		sessionIn(&list[i]).inUTC()
	}
	return list, nil
}

// listingKey is a setting of List's statement.
const listingKey = "gormsessions:listing"

// listing is one List. GORM builds its statement; where it asks for all columns, it is
// run prepared, and its rows are scanned as a look-up's is. For that the listing is
// the statement's pool while gorm:query runs it.
type listing struct {
	*binding
	gorm.ConnPool // the statement's own
	stmt          *gorm.Statement
	dest          any // the pointer to the list
	next          func() reflect.Value
	scanned       bool
	rows          int
}

// beginList makes a listing its statement's pool, just before gorm:query.
func (b *binding) beginList(db *gorm.DB) {
	stmt := db.Statement
	if !b.mine(stmt) || db.Error != nil || db.DryRun || stmt.SQL.Len() > 0 || !b.queries.judge().alone {
		return
	}
	setting, _ := db.Get(listingKey)
	if l, ok := setting.(*listing); ok && l.stmt == nil && l.binding == b && stmt.Dest == l.dest { // and no preload's
		l.stmt, l.ConnPool, stmt.ConnPool = stmt, stmt.ConnPool, l
	}
}

// end gives the statement its pool back, and its list the length that GORM, which saw
// no rows, has set to 0.
func (l *listing) end(db *gorm.DB) {
	if l.stmt != db.Statement {
		return
	}
	db.Statement.ConnPool = l.ConnPool
	if l.scanned && l.rows > 0 {
		db.Statement.ReflectValue.SetLen(l.rows)
		db.RowsAffected = int64(l.rows)
	}
}

// QueryContext implements [gorm.ConnPool]: what it returns has been read.
func (l *listing) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	p := l.plan()
	if p == nil {
		return l.ConnPool.QueryContext(ctx, query, args...)
	}
	rows, err := l.query(ctx, query, args)
	if err != nil {
		return nil, err
	}
	l.scanned = true
	for err == nil && rows.Next() {
		err = p.scan(ctx, rows, l.next())
		l.rows++
	}
	if err == nil {
		err = rows.Err()
	}
	if closing := rows.Close(); err == nil {
		err = closing
	}
	return rows, err
}

// plan is how a row of the statement is scanned; nil: as GORM does.
func (l *listing) plan() *plan {
	var p *plan
	switch joins := l.stmt.Joins; {
	case len(joins) == 0:
		p = l.plans.alone()
	case len(joins) == 1 && l.owner != nil && joins[0].Name == l.owner.Name && joins[0].JoinType == clause.InnerJoin:
		p = l.plans.owned()
	}
	selected, _ := l.stmt.Clauses["SELECT"].Expression.(clause.Select)
	if p == nil || len(l.stmt.ColumnMapping) > 0 || selected.Expression != nil || len(selected.Columns) != len(p.fields) {
		return nil
	}
	for i, t := range p.fields {
		if c := selected.Columns[i]; c.Raw || c.Name != t.field.DBName || (c.Alias != "") != t.owners {
			return nil
		}
	}
	return p
}

func (l *listing) query(ctx context.Context, query string, args []any) (*sql.Rows, error) {
	if pool := poolOf(l.ConnPool); pool != nil && l.repeats() {
		if stmt := l.plans.lists.of(query).on(ctx, pool, l.root.Name(), query); stmt != nil {
			return stmt.QueryContext(ctx, args...)
		}
	}
	return l.ConnPool.QueryContext(ctx, query, args...)
}

// repeats reports whether the statement is of the plugin's own scopes, and likely to
// come again: text of the application's may hold values.
func (l *listing) repeats() bool {
	for name, c := range l.stmt.Clauses {
		switch e := c.Expression.(type) {
		case clause.Select, clause.From:
		case clause.Where:
			for _, condition := range e.Exprs {
				switch condition.(type) {
				case group, exception, clause.Eq:
				default:
					return false
				}
			}
		case clause.OrderBy:
			for _, by := range e.Columns {
				if by.Column.Raw {
					return false
				}
			}
			if e.Expression != nil {
				return false
			}
		default:
			if name != "soft_delete_enabled" {
				return false
			}
		}
	}
	return true
}

// statements are those of lists, by their text: each is prepared when it is first run.
// Their number is limited.
type statements struct {
	list sync.Map // of *prepared, by the text
	n    atomic.Int32
}

const maxStatements = 32

// of is the statement of a text; one that is not to be kept is nil.
func (s *statements) of(text string) *prepared {
	if p, ok := s.list.Load(text); ok {
		return p.(*prepared)
	}
	if s.n.Load() >= maxStatements {
		return nil
	}
	p, there := s.list.LoadOrStore(strings.Clone(text), &prepared{})
	if !there {
		s.n.Add(1)
	}
	return p.(*prepared)
}
