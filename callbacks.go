package gormsessions

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"unsafe"

	"gorm.io/gorm"
	"gorm.io/gorm/callbacks"
)

// callback is one of the plugin's among GORM's own.
type callback struct {
	name  string
	chain processor
	get   func(name string) func(*gorm.DB)
	place interface {
		Register(name string, fn func(*gorm.DB)) error
	}
	handle func(*gorm.DB)
}

func (b *binding) callbacks() []callback {
	var (
		prefix = pluginName(b.schema.ModelType) + ":"
		create = b.root.Callback().Create()
		update = b.root.Callback().Update()
		remove = b.root.Callback().Delete()
	)
	return []callback{
		// After the application's BeforeCreate and BeforeUpdate: the last word
		// on what is written is the plugin's.
		{prefix + "before_create", create, create.Get,
			create.After("gorm:before_create").Before("gorm:save_before_associations"), b.beforeCreate},
		{prefix + "begin_create", create, create.Get, create.Before("gorm:begin_transaction"), b.beginCreate},
		{prefix + "begin_limited", create, create.Get,
			create.After("gorm:save_before_associations").Before("gorm:create"), b.beginLimited},
		{prefix + "end_limited", create, create.Get,
			create.After("gorm:create").Before("gorm:save_after_associations"), b.endLimited},
		{prefix + "after_create", create, create.Get,
			create.After("gorm:commit_or_rollback_transaction"), b.afterCreate},
		{prefix + "around_create", create, create.Get, create.Before("gorm:before_create"), b.beginAround},
		{prefix + "after_around_create", create, create.Get, create.After("gorm:commit_or_rollback_transaction"), b.endAround},
		{prefix + "around_update", update, update.Get, update.Before("gorm:before_update"), b.beginAround},
		{prefix + "after_around_update", update, update.Get, update.After("gorm:commit_or_rollback_transaction"), b.endAround},
		{prefix + "before_update", update, update.Get,
			update.After("gorm:before_update").Before("gorm:save_before_associations"), b.beforeUpdate},
		{prefix + "before_delete", remove, remove.Get,
			remove.After("gorm:before_delete").Before("gorm:delete"), b.beforeDelete},
		{prefix + "after_delete", remove, remove.Get,
			remove.After("gorm:delete").Before("gorm:after_delete"), b.afterDelete},
	}
}

// directCallbacks are those without which GORM's builder does what they do.
func (b *binding) directCallbacks() []callback {
	prefix, query, create := pluginName(b.schema.ModelType)+":", b.root.Callback().Query(), b.root.Callback().Create()
	return []callback{
		{prefix + "begin_insert", create, create.Get, create.After(prefix + "begin_limited").Before("gorm:create"), b.beginInsert},
		{prefix + "end_insert", create, create.Get, create.After("gorm:create").Before(prefix + "end_limited"), b.endInsert},
		{prefix + "begin_list", query, query.Get, query.Before("gorm:query"), b.beginList},
		{prefix + "end_direct", query, query.Get, query.After("gorm:query").Before("gorm:preload"), b.endDirect},
	}
}

// register adds the callbacks, all or none.
func (b *binding) register() error {
	needed, direct := append(b.callbacks(), b.cachingCallbacks()...), b.directCallbacks()
	list := append(slices.Clip(needed), direct...)
	for i, c := range list {
		err := c.place.Register(c.name, c.handle)
		if err == nil {
			continue
		}
		remove(list[:i+1])
		return fmt.Errorf("gormsessions: register the callback %s: %w", c.name, err)
	}
	b.creates, b.queries = newChain(b.root.Callback().Create()), newChain(b.root.Callback().Query())
	b.chains = []*chain{b.creates, b.queries}
	for _, c := range needed {
		on := b.chainOf(c)
		on.needed = append(on.needed, c)
	}
	// Who takes the place of GORM's own query may ask otherwise.
	for _, c := range append(direct, callback{name: "gorm:query", chain: b.queries.of, get: b.root.Callback().Query().Get, handle: callbacks.Query}) {
		on := b.chainOf(c)
		on.direct = append(on.direct, c)
	}
	return nil
}

// chainOf is the chain that a callback is in.
func (b *binding) chainOf(c callback) *chain {
	i := slices.IndexFunc(b.chains, func(on *chain) bool { return on.of == c.chain })
	if i < 0 {
		i = len(b.chains)
		b.chains = append(b.chains, newChain(c.chain))
	}
	return b.chains[i]
}

// unregister removes the callbacks.
func (b *binding) unregister() {
	for _, c := range b.chains {
		remove(c.needed)
	}
	remove(b.directCallbacks())
}

func remove(list []callback) {
	for _, c := range list {
		_ = c.chain.Remove(c.name)
	}
}

// intact notices a callback of the plugin that was removed or replaced. (Where
// before_create itself is gone, [Digest.GormValue] ends the create.)
func (b *binding) intact() error {
	for _, c := range b.chains {
		if missing := c.judge().missing; missing != "" {
			return fmt.Errorf("%w: the callback %s was removed or replaced", ErrUnsafeCreate, missing)
		}
	}
	return nil
}

func (c callback) intact() bool {
	now := c.get(c.name)
	return now != nil && reflect.ValueOf(now).Pointer() == reflect.ValueOf(c.handle).Pointer()
}

// chain is GORM's callbacks of one kind of statement. What they are found to be is
// remembered, for it is asked on each statement.
type chain struct {
	of     processor
	needed []callback // the plugin's own
	direct []callback // those that a statement made once relies on
	list   reflect.Value
	last   atomic.Pointer[judgement]
}

// processor is GORM's, of which the type has no exported name.
type processor interface{ Remove(name string) error }

// judgement is what a chain was found to be while GORM's list was that one. GORM makes
// a new list whenever a callback is registered, replaced or removed; the old one is
// not freed while it is remembered here.
type judgement struct {
	list    unsafe.Pointer
	len     int
	missing string // a needed callback that was removed or replaced
	direct  bool   // all of direct are there
	alone   bool   // there are no callbacks but GORM's, dbresolver's and the plugin's
	bare    bool   // nor dbresolver's, which chooses the pool
}

func newChain(of processor) *chain {
	c := &chain{of: of}
	// GORM does not list them.
	if v := reflect.ValueOf(of); v.Kind() == reflect.Pointer && v.Elem().Kind() == reflect.Struct {
		if list := v.Elem().FieldByName("callbacks"); list.IsValid() && isList(list.Type()) {
			c.list = list
		}
	}
	return c
}

// isList reports whether a type is that of GORM's list, as far as it is read here.
func isList(t reflect.Type) bool {
	if t.Kind() != reflect.Slice || t.Elem().Kind() != reflect.Pointer || t.Elem().Elem().Kind() != reflect.Struct {
		return false
	}
	name, named := t.Elem().Elem().FieldByName("name")
	replace, replaceable := t.Elem().Elem().FieldByName("replace")
	return named && name.Type.Kind() == reflect.String && replaceable && replace.Type.Kind() == reflect.Bool
}

func (c *chain) judge() judgement {
	j := judgement{}
	if c.list.IsValid() {
		j.list, j.len = c.list.UnsafePointer(), c.list.Len()
		if last := c.last.Load(); last != nil && last.list == j.list && last.len == j.len {
			return *last
		}
	}
	if i := slices.IndexFunc(c.needed, func(c callback) bool { return !c.intact() }); i >= 0 {
		j.missing = c.needed[i].name
	}
	j.direct = !slices.ContainsFunc(c.direct, func(c callback) bool { return !c.intact() })
	if j.list != nil {
		j.alone, j.bare = onlyKnown(c.list)
		c.last.Store(&j)
	}
	return j
}

// known are the callbacks that GORM registers for creates and queries.
var known = []string{
	"gorm:begin_transaction", "gorm:before_create", "gorm:save_before_associations", "gorm:create",
	"gorm:save_after_associations", "gorm:after_create", "gorm:commit_or_rollback_transaction",
	"gorm:query", "gorm:preload", "gorm:after_query",
}

// onlyKnown reports whether all callbacks of a list are GORM's, dbresolver's and the
// plugin's, each registered once; and whether dbresolver's is not among them.
func onlyKnown(list reflect.Value) (alone, bare bool) {
	one := list.Type().Elem().Elem()
	name, _ := one.FieldByName("name")
	replace, _ := one.FieldByName("replace")
	const resolver = "gorm:db_resolver"
	seen := map[string]bool{}
	for i := range list.Len() {
		c := list.Index(i).Elem()
		is := c.FieldByIndex(name.Index).String()
		if c.FieldByIndex(replace.Index).Bool() || seen[is] || is != resolver && !slices.Contains(known, is) && !strings.HasPrefix(is, "gormsessions:") {
			return false, false
		}
		seen[is] = true
	}
	return true, !seen[resolver]
}
