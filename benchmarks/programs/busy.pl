# Work of an interpreter with short waits in it. Usage: busy.pl SECONDS
use strict;
use Time::HiRes qw(time sleep);

sub fold {
    my $depth = shift;
    return fold($depth - 1) + fold($depth - 1) if $depth;
    return length join ",", sort { $a <=> $b } map { $_ * 7 % 31 } 1 .. 20;
}

my $end = time + $ARGV[0];
while (time < $end) {
    fold(6);
    ("x" x 80) =~ /(x+x+)+y/;
    sleep 0.002;
}
