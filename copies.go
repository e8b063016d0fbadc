package gormsessions

import (
	"context"
	"encoding/json"
	"maps"
	"reflect"
	"sync"
	"time"

	"gorm.io/datatypes"
	"gorm.io/gorm/schema"
)

// copier makes copies of sessions that share nothing with what they are copied from
// that a caller might write to. Unexported fields are left to the copy that Go makes
// of a struct, but for types that are known to give out what is in them.
type copier struct {
	owner  *schema.Field // nil: none
	deep   bool          // the owner holds references
	fields [][]int       // of a session that do, but for Base and the owner
	slabs  sync.Pool     // of *slab[T]
}

func newCopier(c *columns) *copier {
	made := &copier{}
	var owner []string
	if c.owner != nil {
		made.owner = c.owner.Field
		made.deep = refers(c.owner.FieldSchema.ModelType)
		owner = c.owner.Field.BindNames
	}
	made.find(c.schema.ModelType, nil, owner)
	return made
}

// find lists the fields that hold references; rest is the owner's path from here.
func (c *copier) find(t reflect.Type, index []int, rest []string) {
	for i := range t.NumField() {
		f := t.Field(i)
		path := append(index[:len(index):len(index)], i)
		var within []string
		if len(rest) > 0 && rest[0] == f.Name {
			if within = rest[1:]; len(within) == 0 {
				continue // the owner
			}
		}
		switch {
		case !f.IsExported() && !f.Anonymous, f.Type == reflect.TypeFor[Base](), !refers(f.Type):
		case f.Type.Kind() == reflect.Struct && !opens(f.Type):
			c.find(f.Type, path, within)
		case f.IsExported():
			c.fields = append(c.fields, path)
		}
	}
}

// refers reports whether a value of the type holds references that its user could
// write through.
func refers(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map, reflect.Interface:
		return true
	case reflect.Array:
		return refers(t.Elem())
	case reflect.Struct:
		for i := range t.NumField() {
			if f := t.Field(i); (f.IsExported() || opens(t)) && refers(f.Type) {
				return true
			}
		}
	}
	return false
}

// opens reports whether a type's unexported fields are its user's to write through, as
// what Data of a datatypes.JSONType returns is.
func opens(t reflect.Type) bool {
	return t.PkgPath() == "gorm.io/datatypes" || t.PkgPath() == "math/big"
}

// block is a copy of a session with what it points to beside it.
type block[T any] struct {
	session T
	times   [4]time.Time
	digest  [maxDigest]byte
}

// slab is memory for some copies at once, which an allocation each would cost more
// than to make. Who keeps one of them keeps all.
type slab[T any] struct {
	blocks [8]block[T]
	owners any // a slice as long, of Owner's; nil: not needed yet
	used   int
}

// copyOf copies a session, with its owner or without. One that is flat has Data of
// nothing but texts, numbers and truth values.
func copyOf[T any](c *copier, from *T, owned, flat bool) *T {
	s, _ := c.slabs.Get().(*slab[T])
	if s == nil {
		s = new(slab[T])
	}
	made := &s.blocks[s.used]
	copyInto(c, made, from, owned, flat, room{&s.owners, s.used, len(s.blocks)})
	if s.used++; s.used < len(s.blocks) {
		c.slabs.Put(s)
	}
	return &made.session
}

func copyInto[T any](c *copier, made *block[T], from *T, owned, flat bool, owners room) {
	made.session = *from
	base := sessionIn(&made.session)
	for i, t := range base.optionalTimes() {
		if *t.value != nil {
			made.times[i] = **t.value
			*t.value = &made.times[i]
		}
	}
	n := copy(made.digest[:], base.TokenDigest)
	base.TokenDigest = made.digest[:n:n]
	base.Data = maps.Clone(base.Data)
	if !flat {
		for key, value := range base.Data {
			base.Data[key] = copyJSON(value)
		}
	}
	if c.owner != nil {
		if own, ok := any(&made.session).(owning); ok {
			own.copyOwner(owned, owners)
		} else {
			copyOwner(c.owner.ReflectValueOf(context.Background(), reflect.ValueOf(&made.session).Elem()), owned)
		}
	}
	if c.deep && owned || len(c.fields) > 0 {
		v := reflect.ValueOf(&made.session).Elem()
		if c.deep && owned {
			unshare(reflect.Indirect(c.owner.ReflectValueOf(context.Background(), v)), nil)
		}
		for _, index := range c.fields {
			if f := v.FieldByIndex(index); !f.IsZero() {
				unshare(f, nil)
			}
		}
	}
}

// room is where the owner of a copy goes: the place at in a slice of so many, which
// is made when it is first needed.
type room struct {
	owners *any
	at, of int
}

// owning is a model that embeds [Session], which knows its owner's type.
type owning interface {
	copyOwner(keep bool, to room)
}

// copyOwner gives a copy of a session an owner of its own, or none: one of several
// that are made at once.
func (s *Session[O, K]) copyOwner(keep bool, to room) {
	if !keep || s.Owner == nil {
		s.Owner = nil
		return
	}
	owners, ok := (*to.owners).([]O)
	if !ok {
		owners = make([]O, to.of)
		*to.owners = owners
	}
	owners[to.at] = *s.Owner
	s.Owner = &owners[to.at]
}

// copyOwner is that for a model with an Owner of its own.
func copyOwner(owner reflect.Value, keep bool) {
	if !keep {
		owner.SetZero()
	} else if owner.Kind() == reflect.Pointer && !owner.IsNil() {
		own := reflect.New(owner.Type().Elem())
		own.Elem().Set(owner.Elem())
		owner.Set(own)
	}
}

// isFlat reports whether copies of a session's Data share nothing that is in it.
func isFlat(data datatypes.JSONMap) bool {
	for _, value := range data {
		switch value.(type) {
		case nil, bool, string, json.Number, float64:
		default:
			return false
		}
	}
	return true
}

// copyJSON copies what encoding/json makes of a value, or a hook has put there.
func copyJSON(value any) any {
	switch v := value.(type) {
	case nil, bool, string, json.Number, float64:
	case map[string]any:
		made := make(map[string]any, len(v))
		for key, value := range v {
			made[key] = copyJSON(value)
		}
		return made
	case []any:
		made := make([]any, len(v))
		for i, value := range v {
			made[i] = copyJSON(value)
		}
		return made
	default:
		own := value
		unshare(reflect.ValueOf(&own).Elem(), nil)
		return own
	}
	return value
}

// unshare replaces the references that v holds by copies of what they refer to. What
// is reached twice stays one.
func unshare(v reflect.Value, seen map[uintptr]reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return
		}
		if made, ok := seen[v.Pointer()]; ok && made.Type() == v.Type() {
			v.Set(made)
			return
		}
		made := reflect.New(v.Type().Elem())
		made.Elem().Set(v.Elem())
		if refers(v.Type().Elem()) {
			if seen == nil {
				seen = map[uintptr]reflect.Value{}
			}
			seen[v.Pointer()] = made.Convert(v.Type())
			unshare(made.Elem(), seen)
		}
		v.Set(made.Convert(v.Type()))
	case reflect.Slice:
		if v.IsNil() {
			return
		}
		made := reflect.MakeSlice(v.Type(), v.Len(), v.Len())
		reflect.Copy(made, v)
		v.Set(made)
		unshareAll(v, seen)
	case reflect.Array:
		unshareAll(v, seen)
	case reflect.Map:
		if v.IsNil() {
			return
		}
		made := reflect.MakeMapWithSize(v.Type(), v.Len())
		for key, value := range v.Seq2() {
			own := reflect.New(v.Type().Elem()).Elem()
			own.Set(value)
			unshare(own, seen)
			made.SetMapIndex(key, own)
		}
		v.Set(made)
	case reflect.Interface:
		if v.IsNil() {
			return
		}
		own := reflect.New(v.Elem().Type()).Elem()
		own.Set(v.Elem())
		unshare(own, seen)
		v.Set(own)
	case reflect.Struct:
		for i := range v.NumField() {
			f := v.Field(i)
			if !f.CanSet() && opens(v.Type()) {
				f = reflect.NewAt(f.Type(), f.Addr().UnsafePointer()).Elem()
			}
			if f.CanSet() && !f.IsZero() && refers(f.Type()) {
				unshare(f, seen)
			}
		}
	}
}

func unshareAll(v reflect.Value, seen map[uintptr]reflect.Value) {
	if refers(v.Type().Elem()) {
		for i := range v.Len() {
			unshare(v.Index(i), seen)
		}
	}
}
