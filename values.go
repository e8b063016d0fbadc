package gormsessions

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"time"
	"unicode/utf8"

	"gorm.io/datatypes"
	"gorm.io/gorm"
	"gorm.io/gorm/schema"
)

// What is stored must come back as it was, on every database: else it is refused
// here, with its name, before a database sees it.

// nowOf is the statement's time as the database keeps it: SQLite compares times
// as text, which is only right within one zone.
func nowOf(db *gorm.DB) time.Time { return stored(db.NowFunc()) }

func stored(t time.Time) time.Time { return t.UTC().Truncate(time.Microsecond) }

// storedTime is t as the databases keep it, in a new variable.
func storedTime(name string, t *time.Time) (*time.Time, error) {
	if t == nil {
		return nil, nil
	}
	normal := stored(*t)
	if y := normal.Year(); y < 1000 || y > 9999 {
		return nil, fmt.Errorf("%w: %s is in the year %d: databases keep 1000 to 9999 (nil is never)", ErrInvalidValue, name, y)
	}
	return &normal, nil
}

func sameTime(a, b *time.Time) bool {
	return a == b || a != nil && b != nil && a.Equal(*b)
}

// inUTC makes all nodes see the same values, whatever zone their driver reads
// times in.
func (b *Base) inUTC() {
	for _, t := range b.optionalTimes() {
		if v := *t.value; v != nil && v.Location() != time.UTC {
			utc := v.UTC()
			*t.value = &utc
		}
	}
	for _, t := range b.times() {
		*t.value = t.value.UTC()
	}
}

// checkTexts refuses text that some database would refuse or change.
func (b *binding) checkTexts(value func(*schema.Field) (any, bool)) error {
	for _, f := range b.schema.Fields {
		if f.DBName == "" || f.IndirectFieldType.Kind() != reflect.String || f.Serializer != nil {
			continue
		}
		v, ok := value(f)
		if !ok {
			continue
		}
		if rv := reflect.Indirect(reflect.ValueOf(v)); rv.IsValid() && rv.Kind() == reflect.String {
			if err := checkText(f.Name, rv.String()); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkText(name, text string) error {
	switch {
	case !utf8.ValidString(text):
		return fmt.Errorf("%w: %s is not valid UTF-8", ErrInvalidValue, name)
	case strings.IndexByte(text, 0) >= 0:
		return fmt.Errorf("%w: %s holds a NUL byte, which PostgreSQL cannot store", ErrInvalidValue, name)
	}
	return nil
}

// checkData refuses what would not come back as it was: GORM's JSONMap drops the
// error of a value that is no JSON, and encoding/json replaces invalid UTF-8.
func checkData(data datatypes.JSONMap) error {
	if len(data) == 0 {
		return nil
	}
	text, err := json.Marshal(map[string]any(data))
	if err != nil {
		return fmt.Errorf("%w: Data: %w", ErrInvalidValue, err)
	}
	// A replacement character of the application's own is not escaped.
	for rest := text; ; rest = rest[2:] {
		i := bytes.IndexByte(rest, '\\')
		if i < 0 {
			return nil
		}
		rest = rest[i:]
		switch {
		case bytes.HasPrefix(rest, []byte(`\u0000`)):
			return fmt.Errorf("%w: Data holds a NUL byte, which PostgreSQL cannot store", ErrInvalidValue)
		case bytes.HasPrefix(rest, []byte(`\ufffd`)):
			return fmt.Errorf("%w: Data holds text that is not valid UTF-8", ErrInvalidValue)
		}
	}
}
