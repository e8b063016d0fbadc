package gormsessions

import (
	"database/sql/driver"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"gorm.io/gorm"
	"gorm.io/gorm/clause"
	"gorm.io/gorm/schema"
)

// Abilities is a ready-made extra field: what a session or key may do, as a JSON
// list. Embed it, or give a field this type:
//
//	type APIKey struct {
//		gormsessions.Session[Project, uuid.UUID]
//		gormsessions.Abilities
//	}
//
// An ability is one or more words joined by colons, "posts:write"; words are of
// lower-case letters, digits, dots, dashes and underscores. "posts:*" grants all
// that begin with "posts:", and "*" grants everything. An empty list, the
// default, grants nothing. To store a malformed one, or one of more than 255 bytes, is
// [ErrInvalidValue], in an update too. (An update takes any list of strings, or its
// JSON.)
type Abilities []string

// Can reports whether ability is granted, by its name or by a wildcard. A malformed
// one never is.
func (a Abilities) Can(ability string) bool {
	return wellFormed(ability) && slices.ContainsFunc(grants(ability), func(g string) bool { return slices.Contains(a, g) })
}

// grants are the entries that grant an ability: itself, and the wildcards above.
func grants(ability string) []string {
	list := []string{ability}
	for rest := strings.TrimSuffix(ability, ":*"); ; {
		i := strings.LastIndexByte(rest, ':')
		if i < 0 {
			return append(list, "*")
		}
		rest = rest[:i]
		list = append(list, rest+":*")
	}
}

// wellFormed reports whether ability is words joined by colons, the last of which
// may be *.
func wellFormed(ability string) bool {
	words := strings.Split(ability, ":")
	for i, word := range words {
		if word == "*" && i == len(words)-1 {
			continue
		}
		if word == "" || strings.Trim(word, "abcdefghijklmnopqrstuvwxyz0123456789._-") != "" {
			return false
		}
	}
	return len(ability) <= maxAbility
}

const maxAbility = 255 // bytes

var abilitiesType = reflect.TypeFor[Abilities]()

// WithAbility limits to the sessions that may do something: what [Abilities.Can]
// says, in SQL. A malformed ability is [ErrInvalidValue]; a model without a field of
// type Abilities, or with several, is [ErrNotModel].
func WithAbility(ability string) Scope {
	return func(db *gorm.DB) *gorm.DB {
		return limit(db, func(c *columns) (clause.Expression, error) {
			fields := slices.DeleteFunc(slices.Clone(c.schema.Fields), func(f *schema.Field) bool {
				return f.DBName == "" || f.IndirectFieldType != abilitiesType
			})
			if len(fields) != 1 {
				return nil, fmt.Errorf("%w: %s has not one field of Abilities, but %d", ErrNotModel, c.schema.Name, len(fields))
			}
			if !wellFormed(ability) {
				return nil, malformed(ability)
			}
			column := at(fields[0])
			if db.Name() == "sqlite" {
				// Its columns hold any text, and one that is no JSON would end the query.
				return unit("EXISTS (SELECT 1 FROM json_each(CASE WHEN json_valid(?) THEN ? END) WHERE json_each.value IN ?)", column, column, grants(ability)), nil
			}
			contains := "JSON_CONTAINS(?, ?)"
			if db.Name() == "postgres" {
				contains = "? @> CAST(? AS jsonb)"
			}
			var either []clause.Expression
			for _, g := range grants(ability) {
				either = append(either, clause.Expr{SQL: contains, Vars: []any{column, `"` + g + `"`}})
			}
			return group{clause.Or(either...)}, nil
		})
	}
}

func malformed(ability string) error {
	return fmt.Errorf("%w: %q is no ability: write words of lower-case letters, digits, dots, dashes and underscores, joined by colons, the last of which may be *", ErrInvalidValue, ability)
}

// asAbilities makes what an update sets the column to a list: GORM would store other
// slices as it makes SQL of them, and text as it is. SQL of the application's own is
// left alone.
func asAbilities(value any) (any, error) {
	v := reflect.ValueOf(value)
	if !v.IsValid() || v.Kind() == reflect.Pointer && v.IsNil() {
		return Abilities{}, nil
	}
	switch own := value.(type) {
	case clause.Expression, *gorm.DB:
		return value, nil
	case driver.Valuer:
		text, err := own.Value()
		if err != nil {
			return nil, err
		}
		return asAbilities(text)
	case gorm.Valuer:
		return value, nil
	}
	v = reflect.Indirect(v)
	var list Abilities
	switch {
	case v.Kind() == reflect.String:
		value = []byte(v.String())
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Uint8:
		value = v.Bytes()
	case v.Kind() == reflect.Slice:
		for i := range v.Len() {
			one := v.Index(i)
			if one.Kind() == reflect.Interface {
				one = one.Elem()
			}
			if one.Kind() != reflect.String {
				return nil, errNoAbilities
			}
			list = append(list, one.String())
		}
	default:
		return nil, errNoAbilities
	}
	if text, ok := value.([]byte); ok && json.Unmarshal(text, (*[]string)(&list)) != nil {
		return nil, errNoAbilities
	}
	return list, list.check()
}

var errNoAbilities = fmt.Errorf("%w: abilities are a list of words", ErrInvalidValue)

func (a Abilities) check() error {
	for _, ability := range a {
		if !wellFormed(ability) {
			return malformed(ability)
		}
	}
	return nil
}

// Value implements [driver.Valuer]. nil is stored as the empty list.
func (a Abilities) Value() (driver.Value, error) {
	if err := a.check(); err != nil {
		return nil, err
	}
	if a == nil {
		a = Abilities{}
	}
	text, err := json.Marshal([]string(a))
	return string(text), err
}

// Scan implements [database/sql.Scanner].
func (a *Abilities) Scan(value any) error {
	*a = nil
	switch v := value.(type) {
	case nil:
		return nil
	case []byte:
		return json.Unmarshal(v, (*[]string)(a))
	case string:
		return json.Unmarshal([]byte(v), (*[]string)(a))
	}
	return fmt.Errorf("gormsessions: scan: abilities are JSON, not %T", value)
}

// GormDataType implements GORM's interface for types of its own.
func (Abilities) GormDataType() string { return "json" }

// GormDBDataType makes the column JSON, and JSONB on PostgreSQL.
func (Abilities) GormDBDataType(db *gorm.DB, _ *schema.Field) string {
	if db.Name() == "postgres" {
		return "jsonb"
	}
	return "json"
}
