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
// default, grants nothing. A malformed ability is [ErrInvalidValue] when it is
// stored.
type Abilities []string

// Can reports whether ability is granted, by its name or by a wildcard.
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

// WithAbility limits to the sessions that may do something: what [Abilities.Can]
// says, in SQL. A malformed ability is [ErrInvalidValue], a model without
// Abilities [ErrNotModel].
func WithAbility(ability string) Scope {
	return func(db *gorm.DB) *gorm.DB {
		return limit(db, func(c *columns) (clause.Expression, error) {
			i := slices.IndexFunc(c.schema.Fields, func(f *schema.Field) bool {
				return f.DBName != "" && f.IndirectFieldType == reflect.TypeFor[Abilities]()
			})
			if i < 0 {
				return nil, fmt.Errorf("%w: %s has no Abilities", ErrNotModel, c.schema.Name)
			}
			if !wellFormed(ability) {
				return nil, malformed(ability)
			}
			column := at(c.schema.Fields[i])
			if db.Name() == "sqlite" {
				return unit("EXISTS (SELECT 1 FROM json_each(?) WHERE json_each.value IN ?)", column, grants(ability)), nil
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

// Value implements [driver.Valuer]. nil is stored as the empty list.
func (a Abilities) Value() (driver.Value, error) {
	for _, ability := range a {
		if !wellFormed(ability) {
			return nil, malformed(ability)
		}
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
