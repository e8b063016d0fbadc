package gormsessions

import (
	"fmt"
	"reflect"
	"slices"
	"time"

	"github.com/google/uuid"
	"gorm.io/gorm"
	"gorm.io/gorm/clause"
)

// Scope limits a statement to some sessions. All scopes here are plain GORM
// scopes, for db.Scopes with Find, Count, Updates and Delete, as conditions of
// Preload, in subqueries, and for the methods of [Plugin].
//
// Their columns are qualified and their names taken from the schema, so they
// stay right beside joins, prefixes and naming strategies. db.Scopes runs them
// last and each applies to all conditions before it, also after an Or:
//
//	db.Where("a").Or("b").Scopes(gormsessions.Active)   // (a OR b) AND active
//
// Only an Or in a later scope, or after a direct call Active(db), widens them.
//
// A scope that cannot be built (a zero owner, an unknown field, another model)
// puts its error on the statement, which then matches nothing, in Updates and
// Delete too.
type Scope = func(*gorm.DB) *gorm.DB

// Active limits to sessions that are neither revoked nor expired: an expiry of
// exactly now has come.
func Active(db *gorm.DB) *gorm.DB {
	return limit(db, func(c *columns) (clause.Expression, error) {
		return c.active(nowOf(db)), nil
	})
}

func (c *columns) active(now time.Time) clause.Expression {
	return unit("? IS NULL AND (? IS NULL OR ? > ?)", at(c.revokedAt), at(c.expiresAt), at(c.expiresAt), now)
}

// notRevoked and notExpired are active, as the guards of an UPDATE: written so that
// MySQL does not look for the row by the index on revoked_at. It would lock all
// that are not revoked.
func (c *columns) notRevoked() clause.Expression {
	return unit("COALESCE(?, NULL) IS NULL", at(c.revokedAt))
}

func (c *columns) notExpired(now time.Time) clause.Expression {
	return unit("? IS NULL OR ? > ?", at(c.expiresAt), at(c.expiresAt), now)
}

// Expired limits to sessions whose expiry has come, revoked ones among them.
func Expired(db *gorm.DB) *gorm.DB {
	return limit(db, func(c *columns) (clause.Expression, error) {
		return unit("? IS NOT NULL AND ? <= ?", at(c.expiresAt), at(c.expiresAt), nowOf(db)), nil
	})
}

// Revoked limits to sessions that were ended on purpose.
func Revoked(db *gorm.DB) *gorm.DB {
	return limit(db, func(c *columns) (clause.Expression, error) {
		return clause.Neq{Column: at(c.revokedAt), Value: nil}, nil
	})
}

// Ended limits to sessions that are revoked or expired: all that Active leaves.
func Ended(db *gorm.DB) *gorm.DB {
	return limit(db, func(c *columns) (clause.Expression, error) {
		return unit("? IS NOT NULL OR (? IS NOT NULL AND ? <= ?)", at(c.revokedAt), at(c.expiresAt), at(c.expiresAt), nowOf(db)), nil
	})
}

// ForUser limits to the sessions of an owner: a model, a pointer to one, or a
// bare key. A nil or unsaved owner and a zero key are [ErrZeroOwner]. An owner of
// another model, and a key that is neither of the key's type nor a plain integer
// or text that it can hold exactly, are [ErrWrongOwner].
func ForUser(owner any) Scope { return ForOwner(owner) }

// ForOwner is ForUser, for owners that are not users. With an OwnerType column
// it takes the owner's model and matches type and key as GORM's polymorphic
// associations store them.
func ForOwner(owner any) Scope {
	return func(db *gorm.DB) *gorm.DB {
		return limit(db, func(c *columns) (clause.Expression, error) { return c.ownerIs(db, owner) })
	}
}

// WithToken limits to the session of a token, in whatever state. A malformed token
// matches nothing and is no error. So does one that Rotate has replaced, even
// within its grace: only [Plugin.Authenticate] and Lookup find its session. It needs
// the plugin, and is [ErrNotRegistered] without it.
func WithToken(token string) Scope {
	return func(db *gorm.DB) *gorm.DB {
		return limit(db, func(c *columns) (clause.Expression, error) {
			b := registeredFor(db, c.schema.ModelType)
			if b == nil {
				return nil, fmt.Errorf("%w (WithToken asks it for the hashers)", ErrNotRegistered)
			}
			if digests := b.digests(token); len(digests) > 0 {
				return b.digestIn(digests), nil
			}
			return nothing, nil
		})
	}
}

// WithID limits to the session of that ID; the nil UUID matches none. Where the ID
// comes from a request, put [ForUser] beside it.
func WithID(id uuid.UUID) Scope {
	return func(db *gorm.DB) *gorm.DB {
		return limit(db, func(c *columns) (clause.Expression, error) {
			return clause.Eq{Column: at(c.id), Value: id}, nil
		})
	}
}

// Except leaves out one session, given by its pointer: "sign out everywhere
// else". A session that is nil or was not saved is [ErrInvalidValue], one of another
// model [ErrNotModel]: to leave out none would end them all.
func Except(session Model) Scope {
	return func(db *gorm.DB) *gorm.DB {
		return limit(db, func(c *columns) (clause.Expression, error) {
			if v := reflect.ValueOf(session); !v.IsValid() || v.Kind() == reflect.Pointer && v.IsNil() {
				return nil, errNilSession
			}
			base := session.SessionBase()
			if base.ID == uuid.Nil {
				return nil, errUnsaved
			}
			if model := reflect.TypeOf(session).Elem(); model != c.schema.ModelType {
				return nil, fmt.Errorf("%w: Except was given a %v", ErrNotModel, model)
			}
			return exception{unit("? <> ?", at(c.id), base.ID)}, nil
		})
	}
}

// UnusedSince limits to the sessions that were neither created nor used since t, as
// far as LastUsedAt tells: the last use may be later by up to Config.TouchInterval.
// They are the devices that somebody has forgotten; or, with t the time at which all
// nodes had a new first hasher, the sessions that still have another one's digest.
// (For that, call [Plugin.Extend] only with what Authenticate has returned: it counts
// as a use, but does not know the token, and so leaves the digest.)
func UnusedSince(t time.Time) Scope {
	return func(db *gorm.DB) *gorm.DB {
		return limit(db, func(c *columns) (clause.Expression, error) {
			return unit("COALESCE(?, ?) < ?", at(c.lastUsedAt), at(c.createdAt), stored(t)), nil
		})
	}
}

// WithOwner loads the owner in the same query, by a join. A session whose owner
// is gone, or soft-deleted, is then no session. It is for queries: GORM ignores
// joins in Updates and Delete, so there it is an error.
func WithOwner(db *gorm.DB) *gorm.DB {
	db = db.Clauses() // a statement of its own, where db is none yet
	c, err := columnsFor(db)
	if err == nil && c.owner == nil {
		err = fmt.Errorf("%w: %s has no association Owner", ErrNotModel, c.schema.Name)
	}
	if err != nil {
		return refuse(db, err)
	}
	return db.InnerJoins(c.owner.Name)
}

// Stmt adapts scopes to GORM's generics API:
//
//	gorm.G[UserSession](db).Scopes(gormsessions.Stmt(gormsessions.Active)).Find(ctx)
//
// (On a *gorm.DB in DryRun mode the generics API itself loses all scopes.)
func Stmt(scopes ...Scope) func(*gorm.Statement) {
	return func(stmt *gorm.Statement) { stmt.DB.Scopes(scopes...) }
}

// group is conditions in parentheses. GORM's own grouping cannot be relied on: it
// takes a conjunction apart to negate it, and looks for " OR " in the text of a
// condition to know whether that needs parentheses.
type group []clause.Expression

func (g group) Build(builder clause.Builder) {
	_ = builder.WriteByte('(')
	clause.Where{Exprs: g}.Build(builder)
	_ = builder.WriteByte(')')
}

// enclosed is a group of the application's conditions.
type enclosed struct{ group }

// unit is a condition that keeps its meaning beside any other, also negated.
func unit(sql string, vars ...any) group { return group{clause.Expr{SQL: sql, Vars: vars}} }

// exception is what Except asks for; alone it limits next to nothing.
type exception struct{ group }

// nothing is unknown, neither true nor false: it matches no row, and neither
// does its negation.
var nothing = unit("1 = NULL")

// limit adds a condition to the statement, or refuses it.
func limit(db *gorm.DB, condition func(*columns) (clause.Expression, error)) *gorm.DB {
	db = db.Clauses() // a statement of its own, where db is none yet
	c, err := columnsFor(db)
	if err != nil {
		return refuse(db, err)
	}
	expr, err := condition(c)
	if err != nil {
		return refuse(db, err)
	}
	return and(db, expr)
}

// and adds a condition to all that stand before it, also to an Or.
func and(db *gorm.DB, expr clause.Expression) *gorm.DB { return enclose(db).Where(expr) }

// enclose puts the statement's conditions in parentheses, where they need them.
func enclose(db *gorm.DB) *gorm.DB {
	c := db.Statement.Clauses["WHERE"]
	if where, ok := c.Expression.(clause.Where); ok && slices.ContainsFunc(where.Exprs, loose) {
		c.Expression = clause.Where{Exprs: []clause.Expression{enclosed{where.Exprs}}}
		db.Statement.Clauses["WHERE"] = c
	}
	return db
}

// loose reports whether an AND beside it could change what a condition says.
func loose(expr clause.Expression) bool {
	switch expr.(type) {
	case clause.Eq, clause.Neq, clause.Gt, clause.Gte, clause.Lt, clause.Lte, clause.Like, clause.IN, group, enclosed, exception:
		return false
	}
	return true
}

// refuse puts an error on the statement. GORM drops the error of a grouped
// condition, of a join's and of a subquery: the first two match nothing by the
// condition, the last by text that no database takes for SQL (it would else be
// empty, and SQLite takes NOT IN () for true).
func refuse(db *gorm.DB, err error) *gorm.DB {
	db = db.Where(nothing)
	if db.Error != nil {
		err = fmt.Errorf("%w; %w", db.Error, err)
	}
	db.Error = err
	db.Statement.SQL.WriteString("a gormsessions scope was refused")
	return db
}
