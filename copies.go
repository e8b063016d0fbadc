package gormsessions

import (
	"context"
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
	owners reflect.Value // a slice as long; invalid: not needed yet
	used   int
}

// copyOf copies a session, with its owner or without.
func copyOf[T any](c *copier, from *T, owned bool) *T {
	s, _ := c.slabs.Get().(*slab[T])
	if s == nil {
		s = new(slab[T])
	}
	made := &s.blocks[s.used]
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
	if base.Data != nil {
		data := make(datatypes.JSONMap, len(base.Data))
		for key, value := range base.Data {
			data[key] = copyJSON(value)
		}
		base.Data = data
	}
	if c.owner != nil || len(c.fields) > 0 {
		v := reflect.ValueOf(&made.session).Elem()
		if c.owner != nil {
			c.copyOwner(c.owner.ReflectValueOf(context.Background(), v), owned, s.owner)
		}
		for _, index := range c.fields {
			if f := v.FieldByIndex(index); !f.IsZero() {
				unshare(f, nil)
			}
		}
	}
	if s.used++; s.used < len(s.blocks) {
		c.slabs.Put(s)
	}
	return &made.session
}

// copyOwner gives a copy of a session an owner of its own, or none.
func (c *copier) copyOwner(owner reflect.Value, owned bool, room func(reflect.Type) reflect.Value) {
	switch {
	case !owned:
		owner.SetZero()
		return
	case owner.Kind() == reflect.Pointer:
		if owner.IsNil() {
			return
		}
		own := room(owner.Type().Elem())
		own.Set(owner.Elem())
		owner.Set(own.Addr())
		owner = own
	}
	if c.deep {
		unshare(owner, nil)
	}
}

// owner is room for the owner of the copy that is being made.
func (s *slab[T]) owner(t reflect.Type) reflect.Value {
	if !s.owners.IsValid() {
		s.owners = reflect.MakeSlice(reflect.SliceOf(t), len(s.blocks), len(s.blocks))
	}
	return s.owners.Index(s.used)
}

// copyJSON copies what encoding/json makes of a value.
func copyJSON(value any) any {
	switch v := value.(type) {
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
