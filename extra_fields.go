package gormsessions

import (
	"database/sql"
	"database/sql/driver"
	"encoding"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"time"

	"gorm.io/gorm"
	"gorm.io/gorm/clause"
	"gorm.io/gorm/schema"
)

// ExtraField is a column of a session model beyond those of [Base] and
// [Session]: the application's own.
type ExtraField struct {
	Name     string       // the Go name
	Column   string       // the column's name
	Type     reflect.Type // the Go type
	Nullable bool         // whether the column takes NULL
}

// Fields are values by Go field name or column name, for [Where].
type Fields map[string]any

// Where limits to sessions whose fields have the given values. The names are Go
// or column names of the model's columns. A value must fit the field's type: a number
// must convert without loss, and text stands for types that parse it. nil matches
// NULL, and a slice any of its values. Several fields must all match; no fields at all
// match every session. An empty slice matches none. TokenDigest, Data and fields with a
// serializer cannot be asked for; for what is in JSON there is datatypes.JSONQuery. Text
// compares as the column's collation says: MySQL's default takes Bob and bob for the
// same.
//
// It is safe to fill from a request: an unknown name is [ErrUnknownField], a value of
// another type [ErrInvalidValue], and neither ever becomes SQL.
func Where(fields Fields) Scope {
	return func(db *gorm.DB) *gorm.DB {
		if len(fields) == 0 {
			return db
		}
		return limit(db, func(c *columns) (clause.Expression, error) {
			all := make(group, 0, len(fields))
			for _, name := range slices.Sorted(maps.Keys(fields)) {
				one, err := c.fieldIs(name, fields[name])
				if err != nil {
					return nil, err
				}
				all = append(all, one)
			}
			if len(all) == 1 {
				return all[0], nil // as it is: FirstOrCreate takes values from it
			}
			return all, nil
		})
	}
}

// ExtraFields lists the columns of T beyond those of Base and Session, in the
// struct's order. It is empty before the plugin is registered.
func (p *Plugin[T]) ExtraFields() []ExtraField {
	b := p.core.bound.Load()
	if b == nil {
		return nil
	}
	return b.extraFields()
}

func (c *columns) extraFields() []ExtraField {
	var list []ExtraField
	for _, name := range c.schema.DBNames {
		if f := c.schema.FieldsByDBName[name]; c.extra(f) {
			list = append(list, ExtraField{
				Name: f.Name, Column: f.DBName, Type: f.FieldType, Nullable: !f.NotNull && !f.PrimaryKey})
		}
	}
	return list
}

func (c *columns) fieldIs(name string, value any) (clause.Expression, error) {
	f := c.schema.FieldsByDBName[name]
	if f == nil {
		f = c.schema.FieldsByName[name]
	}
	if f == nil || f.DBName == "" || !f.Readable || f == c.digest || f == c.data {
		return nil, fmt.Errorf("%w: %q of %s", ErrUnknownField, name, c.schema.Name)
	}
	if value == nil {
		return clause.Eq{Column: at(f), Value: nil}, nil
	}
	v := reflect.ValueOf(value)
	if f.Serializer == nil {
		if one, err := convert(v, f.FieldType); err == nil {
			value, err := c.comparable(f, one)
			return clause.Eq{Column: at(f), Value: value}, err
		}
		if v.Kind() == reflect.Slice {
			return c.fieldIn(f, v)
		}
	}
	return nil, misfit(f, v)
}

func (c *columns) fieldIn(f *schema.Field, list reflect.Value) (clause.Expression, error) {
	values := make([]any, list.Len())
	for i := range values {
		v := list.Index(i)
		if v.Kind() == reflect.Interface {
			v = v.Elem()
		}
		one, err := convert(v, f.FieldType)
		if err != nil {
			return nil, misfit(f, v)
		}
		if values[i], err = c.comparable(f, one); err != nil {
			return nil, err
		}
	}
	if len(values) == 0 {
		return nothing, nil
	}
	return clause.IN{Column: at(f), Values: values}, nil
}

// comparable is a value as the column holds it: the times of a session are
// stored in UTC, those of the application's own fields as it gave them.
func (c *columns) comparable(f *schema.Field, v reflect.Value) (any, error) {
	text := v
	if valuer, ok := v.Interface().(driver.Valuer); ok {
		value, err := valuer.Value()
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrInvalidValue, f.Name, err)
		}
		text = reflect.ValueOf(value)
	}
	if text.Kind() == reflect.String {
		return v.Interface(), checkText(f.Name, text.String())
	}
	if t, ok := v.Interface().(time.Time); ok && !c.extra(f) {
		normal, err := storedTime(f.Name, &t)
		if err != nil {
			return nil, err
		}
		return *normal, nil
	}
	return v.Interface(), nil
}

func misfit(f *schema.Field, v reflect.Value) error {
	given := "nil"
	if v.IsValid() {
		given = v.Type().String()
	}
	return fmt.Errorf("%w: %s is %v and cannot be compared with this %s", ErrInvalidValue, f.Name, f.FieldType, given)
}

var numberType = reflect.TypeFor[json.Number]()

// convert makes v a value of type to without changing what it says. Databases
// would convert more: MySQL takes every text that is no number for 0, so that a
// 0 from a request would match them all.
func convert(v reflect.Value, to reflect.Type) (reflect.Value, error) {
	for to.Kind() == reflect.Pointer {
		to = to.Elem()
	}
	for v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	refused := fmt.Errorf("%w: want %v", ErrInvalidValue, to)
	if !v.IsValid() {
		return v, refused
	}
	if v.Type() == to {
		return v, nil
	}
	// Of other types only the language's own are taken: an OrgID is no UserID,
	// though both may be integers.
	if v.Type() == numberType {
		var n any
		if json.Unmarshal([]byte(v.String()), &n) != nil {
			return v, refused
		}
		if i, err := v.Interface().(json.Number).Int64(); err == nil {
			n = i
		}
		v = reflect.ValueOf(n)
	}
	if v.Type().PkgPath() != "" {
		return v, refused
	}
	out := reflect.New(to).Elem()
	if v.Kind() == reflect.String && out.Kind() != reflect.String {
		if text, ok := out.Addr().Interface().(encoding.TextUnmarshaler); ok {
			if err := text.UnmarshalText([]byte(v.String())); err != nil {
				return v, refused
			}
			return convert(out, to)
		}
	}
	switch {
	case v.Kind() == reflect.String && out.Kind() == reflect.String,
		v.Kind() == reflect.Bool && out.Kind() == reflect.Bool:
		return v.Convert(to), nil
	case v.CanFloat() && out.CanFloat():
		if !out.OverflowFloat(v.Float()) {
			return v.Convert(to), nil
		}
	case v.CanInt() || v.CanUint() || v.CanFloat():
		if i, ok := integer(v); ok && setInteger(out, i) {
			return out, nil
		}
	}
	if null, ok := out.Addr().Interface().(sql.Scanner); ok && out.Kind() == reflect.Struct && null.Scan(v.Interface()) == nil {
		return out, nil
	}
	return v, refused
}

// whole is an integer of any Go type.
type whole struct {
	negative bool
	bits     uint64
}

func integer(v reflect.Value) (whole, bool) {
	switch {
	case v.CanInt():
		return whole{v.Int() < 0, uint64(v.Int())}, true
	case v.CanUint():
		return whole{false, v.Uint()}, true
	}
	f := v.Float() // as encoding/json reads numbers: exact up to 2⁵³
	if f != math.Trunc(f) || math.Abs(f) > 1<<53 {
		return whole{}, false
	}
	return whole{f < 0, uint64(int64(f))}, true
}

func setInteger(out reflect.Value, i whole) bool {
	switch {
	case out.CanInt() && (i.negative || i.bits <= math.MaxInt64) && !out.OverflowInt(int64(i.bits)):
		out.SetInt(int64(i.bits))
	case out.CanUint() && !i.negative && !out.OverflowUint(i.bits):
		out.SetUint(i.bits)
	case out.CanFloat() && !i.negative && i.bits <= 1<<53:
		out.SetFloat(float64(i.bits))
	case out.CanFloat() && i.negative && int64(i.bits) >= -1<<53:
		out.SetFloat(float64(int64(i.bits)))
	default:
		return false
	}
	return true
}
